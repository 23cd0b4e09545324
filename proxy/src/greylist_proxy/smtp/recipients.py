# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose mail is taken here: our domains, and where a file names them, our users.

    domains          of `backend.domains`; a recipient is at one of them in its A-label or its U-label form
    unknown domain   refused for good (550), or for the days of a cutover put off (450)
    recipients       a file of those that there are: anybody else at our domains is refused at once, before greylisting,
                     so that the mail server behind makes no bounces (backscatter)

The file has one address or `@domain` a line, and comments after a `#` that begins the line or follows a blank. Case
does not matter, in domains as in local parts: what a directory writes as `Ann@` is mailed as `ann@`. Nothing else is
guessed: `ann+shop@` is another address, and a domain stands for itself, not for those below it. Whoever is wrongly
missing from this file gets no mail, so a line that can't be read is an error, and so is a file that names nobody.

`postmaster` and `abuse` are left to the mail server behind whether the file has them or not (RFC 5321 section 4.5.1,
RFC 2142 section 4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal

from greylist_proxy import policy
from greylist_proxy.lists import ListError
from greylist_proxy.lists.entries import quoted
from greylist_proxy.normalise import composed, domain_key
from greylist_proxy.policy import Decision
from greylist_proxy.smtp.address import AddressError, Path, is_domain, parse_recipient

MAX_FILE_SIZE = 256 << 20  # bytes: some five million addresses
MAX_ERRORS = 20  # lines that are named; a file of something else would have one for each
ALLOWED = "an address such as ann@example.org, or a domain such as @example.org, with a comment after a blank and a #"
COMMENT = re.compile(rb"(?:^|\s)#.*")


class Recipients:
    """The users that there are; `path in recipients` tells whether one is among them."""

    def __init__(self, addresses: Iterable[str], domains: Iterable[str]) -> None:
        self._addresses = frozenset(addresses)
        self._domains = frozenset(domains)

    @classmethod
    def load(cls, path: FilePath) -> Recipients:
        """Read the file; a million lines take seconds. ListError: it, or lines of it, can't be read."""
        addresses: set[str] = set()
        domains: set[str] = set()
        errors: list[str] = []
        for number, line in enumerate(_read(path).split(b"\n"), start=1):
            entry = COMMENT.sub(b"", line).strip()
            if not entry:
                continue
            try:
                if entry.startswith(b"@"):
                    domains.add(_domain(entry[1:].decode()))
                else:
                    addresses.add(_address(entry.decode()))
            except ValueError:  # UnicodeDecodeError too
                shown = quoted(entry.decode("utf-8", "backslashreplace"))
                errors.append(f"{path}:{number}: {shown}: allowed is {ALLOWED}")
        if len(errors) > MAX_ERRORS:
            errors[MAX_ERRORS:] = [f"{path}: {len(errors) - MAX_ERRORS} more lines can't be read"]
        if not (errors or addresses or domains):
            errors.append(f"{path}: names nobody, so all mail would be refused; to take mail for anybody, name no file")
        if errors:
            raise ListError(errors)
        return cls(addresses, domains)

    def __contains__(self, recipient: Path) -> bool:
        domain = recipient.domain
        return domain in self._domains or f"{_local_key(recipient.local)}@{domain}" in self._addresses

    def __len__(self) -> int:
        return len(self._addresses) + len(self._domains)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which recipients mail is taken for, as far as nobody has to be asked. Made by `load`."""

    domains: frozenset[str]  # in lower case, as A-labels
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
        known = None if recipients is None else Recipients.load(recipients)
        return cls(frozenset(map(domain_key, domains)), known, unknown_domain)

    def refusal(self, recipient: Path) -> Decision | None:
        """Return why this recipient is refused or put off; None: it is ours, as far as is known here.

        The bare `postmaster` has no domain, and is ours.
        """
        if recipient.domain and recipient.domain not in self.domains:
            return policy.RELAY_DENIED if self.unknown_domain == "reject" else policy.UNKNOWN_DOMAIN
        if self.known is not None and recipient not in self.known and not policy.is_exempt(recipient.address):
            return policy.UNKNOWN_RECIPIENT
        return None


def screen(address: str, acceptance: Acceptance) -> tuple[Path, Decision | None]:
    """Parse a recipient, and decide what needs nobody to be asked. AddressError: not an address."""
    try:
        recipient = parse_recipient(address)
    except AddressError as error:
        if not error.routing:
            raise
        return Path(address), policy.ROUTING
    return recipient, acceptance.refusal(recipient)


def _read(path: FilePath) -> bytes:
    try:
        # Looked at before it is opened: that would wait for ever on a pipe. /dev/zero never ends.
        if not path.is_file():
            raise ListError([f"{path}: not a file; allowed is a regular file"])
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ListError([f"{path}: can't be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE_SIZE:
        raise ListError([f"{path}: larger than {MAX_FILE_SIZE} bytes"])
    return data.removeprefix(b"\xef\xbb\xbf")


def _address(entry: str) -> str:
    try:
        path = parse_recipient(entry)
    except AddressError as error:
        raise ValueError(entry) from error
    if not path.domain:
        raise ValueError(entry)
    return f"{_local_key(path.local)}@{path.domain}"


def _domain(entry: str) -> str:
    domain = domain_key(composed(entry))
    if not is_domain(domain):
        raise ValueError(entry)
    return domain


def _local_key(local: str) -> str:
    return local.lower() if local.isascii() else composed(composed(local).casefold())
