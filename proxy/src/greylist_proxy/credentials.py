# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd's credentials in the configuration: a value `$CREDENTIALS_DIRECTORY/NAME` is the file that systemd gave us.

The folder's name holds that of the service, so one configuration could not name it for two services that share it, as
they do while one takes over from the other. Commands that are run by hand have no such folder: for them it is
`credentials` beside the configuration file, where the role keeps what systemd is to hand out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

VARIABLE = "CREDENTIALS_DIRECTORY"
BEGINNING = f"${VARIABLE}/"


def expand(value: Any, config_file: Path) -> Any:
    """Return the configuration, or a part of it, with the folder's name where the variable stood."""
    if isinstance(value, dict):
        return {key: expand(each, config_file) for key, each in value.items()}
    if isinstance(value, list):
        return [expand(each, config_file) for each in value]
    if isinstance(value, str) and value.startswith(BEGINNING):
        folder = os.environ.get(VARIABLE) or config_file.absolute().parent / "credentials"
        return f"{folder}/{value.removeprefix(BEGINNING)}"
    return value
