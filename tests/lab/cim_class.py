# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is a WMI class to the lab? Methods with typed parameters, and maybe instances to Get.

The classes themselves (std_reg_prov.py, win32_service.py) are tables of these; cim.py reads requests by
them and writes the replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lab.backend import Backend
from lab.machine import Machine

# A value of a property or an output parameter; None is null.
Value = str | int | bool | None
# The input parameters of a call by name, numbers already read.
Arguments = Mapping[str, str | int]
# What a method gives: ReturnValue and its output parameters.
Output = tuple[int, Mapping[str, Value]]
# Input parameters by name; all numbers of these classes are uint32.
Parameters = Mapping[str, type[str] | type[int]]


@dataclass(frozen=True)
class Method:
    """A method: its input parameters, and what does it, given the instance's key ("" for a static one)."""

    parameters: Parameters
    call: Callable[[Backend, str, Arguments], Output]


@dataclass(frozen=True)
class CimClass:
    """A class: its methods by lower-case name, and the key and properties of its instances, if any.

    `properties` gets the key's value ("" for a singleton that was asked for without). It and the methods
    raise `Win32Error` for what they have no answer to, and `Fault` where there is no such instance. `keys`
    gives the keys of all instances, where the lab can enumerate them.
    """

    name: str
    methods: Mapping[str, Method]
    key: str | None = None
    properties: Callable[[Backend, str, Machine], Mapping[str, Value]] | None = None
    keys: Callable[[Backend, Machine], Sequence[str]] | None = None
    singleton: bool = False
