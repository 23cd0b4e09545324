# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets that the configuration names files for, such as credentials of systemd: they are never in it."""

from __future__ import annotations

from pathlib import Path

from greylist_proxy.config import ConfigError

LONGEST = 4096  # bytes; /dev/zero is longer


def read_secret(key: str, path: Path | None, what: str = "password") -> str:
    """Read what the file of that key holds, without the line's end; "" where there is no file.

    ConfigError: it can't be read, or holds anything else than one line. The message never shows any of it.
    """
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        secret = data.decode().rstrip("\r\n")
    except OSError as error:
        mend = "it must be there, and readable for the user that the proxy runs as"
        raise ConfigError([f"{key} = {path}: can't be read: {error.strerror}; {mend}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{key} = {path}: not UTF-8 text"]) from error
    if not secret or len(data) > LONGEST or not secret.isprintable():
        raise ConfigError([f"{key} = {path}: must hold the {what} and nothing else, in one line"])
    return secret
