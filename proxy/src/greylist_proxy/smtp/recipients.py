# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose mail is taken here: our domains, and where a file names them, our users.

    domains          of `backend.domains`; a recipient is at one of them in its A-label or its U-label form
    unknown domain   refused for good (550), or for the days of a cutover put off (450)
    recipients       a file of those that there are: anybody else at our domains is refused at once, before greylisting,
                     so that the mail server behind makes no bounces (backscatter)

The file has one address or `@domain` a line, and comments after a `#` that begins the line or follows a blank. Case does
not matter, in domains as in local parts: what a directory writes as `Ann@` is mailed as `ann@`. Nothing else is
guessed: `ann+shop@` is another address, and a domain stands for itself, not for those below it. Whoever is wrongly
missing from this file gets no mail, so a line that can't be read is an error, and so is a file that names nobody.

`postmaster` and `abuse` are left to the mail server behind whether the file has them or not (RFC 5321 section 4.5.1,
RFC 2142 section 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal

from greylist_proxy.policy import Decision
from greylist_proxy.smtp.address import Path


class Recipients:
    """The users that there are."""

    @classmethod
    def load(cls, path: FilePath) -> Recipients:
        """Read the file. ListError: it can't be read, or has lines that can't; each is named with file and line."""
        raise NotImplementedError

    def __contains__(self, recipient: Path) -> bool:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which recipients mail is taken for, as far as nobody has to be asked. Made by `load`."""

    domains: frozenset[str]  # in every form in which a recipient may write them, in lower case
    known: Recipients | None = None  # None: no file, anybody at our domains may be one
    unknown_domain: Literal["reject", "defer"] = "reject"

    @classmethod
    def load(
        cls,
        domains: Iterable[str],
        recipients: FilePath | None = None,
        unknown_domain: Literal["reject", "defer"] = "reject",
    ) -> Acceptance:
        """Make it of the settings of `[backend]`; reads the file, if any. ListError: as `Recipients.load`."""
        raise NotImplementedError

    def refusal(self, recipient: Path) -> Decision | None:
        """Return why this recipient is refused or put off; None: it is ours, as far as is known here."""
        raise NotImplementedError
