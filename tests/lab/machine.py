# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which computer does a lab host play: its name, and its Windows?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class OperatingSystem:
    """A Windows as WMI names it."""

    caption: str
    version: str
    service_pack: int = 0
    other_type: str | None = None

    @property
    def build_number(self) -> str:
        """The last part of the version."""
        return self.version.rpartition(".")[2]


# By the names of Lab.start(system=…). The captions are WMI's, with the marks and blanks that it has.
SYSTEMS: Final[Mapping[str, OperatingSystem]] = {
    "2003 R2": OperatingSystem("Microsoft(R) Windows(R) Server 2003, Standard Edition", "5.2.3790", 2, "R2"),
    "2008 R2": OperatingSystem("Microsoft Windows Server 2008 R2 Standard ", "6.1.7601", 1),
    "2012": OperatingSystem("Microsoft Windows Server 2012 Standard", "6.2.9200"),
    "2012 R2": OperatingSystem("Microsoft Windows Server 2012 R2 Standard", "6.3.9600"),
    "2016": OperatingSystem("Microsoft Windows Server 2016 Standard", "10.0.14393"),
    "2019": OperatingSystem("Microsoft Windows Server 2019 Standard", "10.0.17763"),
    "2022": OperatingSystem("Microsoft Windows Server 2022 Standard", "10.0.20348"),
    "2025": OperatingSystem("Microsoft Windows Server 2025 Standard", "10.0.26100"),
}
DEFAULT_SYSTEM: Final = "2019"


@dataclass
class Machine:
    """The computer. What it plays may change while the host runs."""

    name: str
    system: OperatingSystem = field(default_factory=lambda: SYSTEMS[DEFAULT_SYSTEM])
