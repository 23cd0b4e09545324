# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may ask on the admin address: whoever knows the token, or, without one, what runs on this host.

A page in a browser on this host is none of these: by a name of its own that leads to 127.0.0.1 (DNS rebinding) it could
read what it likes. So without a token a request must call us by an address, or by a name that is ours.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from ipaddress import ip_address

from greylist_proxy.config import Config, ConfigError
from greylist_proxy.secret_file import read_secret

MIN_TOKEN = 16  # characters; 16 random ones of base64 are 96 bits
HOST = re.compile(r"(?: \[ ([0-9A-Fa-f:.]+) \] | ([^\[\]:]+) ) (?: : [0-9]{1,5} )?", re.VERBOSE)


class Access:
    """The rules, of which a reload may change the token. `names` are ours, besides `localhost`."""

    def __init__(self, token: str, names: Iterable[str] = (), *, is_local: bool = True) -> None:
        self._token = token.encode()
        self._names = {"localhost", *(name.lower() for name in names)}
        self._is_local = is_local

    def change_token(self, token: str) -> None:
        """Let another token count. Where others than this host may connect, the old one stays if there is none."""
        if token or self._is_local:
            self._token = token.encode()

    def may(self, authorization: str) -> bool:
        """Tell whether a request with this Authorization field may be answered; takes the same time for any token."""
        if not self._token:
            return self._is_local
        scheme, _space, token = authorization.partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._token) and scheme.lower() == "bearer"

    def is_ours(self, host: str) -> bool:
        """Tell whether a Host field names us: an address, or one of our names. With a token any name will do."""
        if self._token:
            return True
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1] or match[2]
        return name.lower().removesuffix(".") in self._names or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def read_token(config: Config) -> str:
    """Read the token; "" where none is set. ConfigError: its file can't be used."""
    key, path = "admin.token_file", config.admin.token_file
    token = read_secret(key, path, "token")
    if path is not None and (len(token) < MIN_TOKEN or not token.isascii() or " " in token):
        raise ConfigError([f"{key} = {path}: must hold a token of at least {MIN_TOKEN} ASCII characters, no spaces"])
    return token
