# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of MAIL and RCPT: SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531) and those of DSN (RFC 3461).

They are checked here and passed on as they came: the case of an ENVID or an ORCPT belongs to the sender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.replies import Reply


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ESMTP parameter: how it came, its keyword in upper case, and its value ("" where it has none)."""

    raw: str
    keyword: str
    value: str


def check_mail_parameters(
    parameters: Sequence[Parameter], offered: Capabilities | None, max_size: int
) -> Reply | None:
    """Return the reply that MAIL's parameters have earned, None where they are fine. `max_size`: 0 is no limit."""
    raise NotImplementedError


def check_rcpt_parameters(parameters: Sequence[Parameter], offered: Capabilities | None) -> Reply | None:
    """Return the reply that RCPT's parameters have earned, None where they are fine."""
    raise NotImplementedError
