# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: TOML, checked as a whole before anything starts.

The sections are in `config_sections.py`, their values in `config_values.py`. All errors are found at once and given one
line each: file, key, value, what is allowed. Unknown keys are errors: a misspelt `dealy` must not leave somebody with a
default that he did not choose.
"""

from __future__ import annotations

import re
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails

from greylist_proxy.config_sections import (
    AdminSection,
    AllowSection,
    BackendSection,
    DnsSection,
    GreylistSection,
    Section,
    SmtpSection,
    StoreSection,
    TarpitSection,
    TrapSection,
)
from greylist_proxy.config_values import Endpoint
from greylist_proxy.credentials import expand
from greylist_proxy.log import json_line

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
# What must not be shown of an address, in JSON: all up to the last @. A password may have any character, also a slash.
PASSWORD = re.compile(r'(:/*+)(?:[^"\\]|\\.)*@')
MAX_FILE_SIZE = 1 << 20  # no configuration is larger; /dev/zero is


class ConfigError(Exception):
    """The configuration can't be used; `lines` has one sentence for each thing that is wrong."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Config(Section):
    """The whole file."""

    smtp: SmtpSection
    backend: BackendSection
    greylist: GreylistSection
    allow: AllowSection
    trap: TrapSection
    dns: DnsSection
    store: StoreSection
    tarpit: TarpitSection
    admin: AdminSection

    @model_validator(mode="after")
    def _in_accord(self) -> Config:
        if self.tarpit.max_waiting >= self.smtp.max_connections:
            raise ValueError("tarpit.max_waiting", f"below smtp.max_connections ({self.smtp.max_connections})")
        for host in self.backend.hosts:
            if any(_is_reached_by(host, listener) for listener in self.smtp.listen):
                raise ValueError("backend.hosts", f"a mail server, not this proxy's own listener {host}")
        return self


def _is_reached_by(host: Endpoint, listener: Endpoint) -> bool:
    if host.port != listener.port:
        return False
    # A wildcard listens on loopback too. Which other addresses are ours is not known here.
    return host.host == listener.host or (listener.host in WILDCARDS and host.host in ("localhost", "127.0.0.1", "::1"))


def load(path: Path) -> Config:
    """Read and check the file. ConfigError: one line for each thing that is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_SIZE + 1)
        if len(text) > MAX_FILE_SIZE:
            raise ConfigError([f"{path}: larger than {MAX_FILE_SIZE} bytes, which no configuration is"])
        data = tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except ValueError as error:  # TOMLDecodeError, or what a number of thousands of digits costs
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
    try:
        # A section that is left out is an empty one: its defaults are checked, its required keys missed.
        return Config.model_validate({name: {} for name in Config.model_fields} | expand(data, path))
    except ValidationError as error:
        lines = [f"{path}: {_explain(detail, data)}" for detail in error.errors(include_url=False)]
        raise ConfigError(list(dict.fromkeys(lines))) from error


def advice(config: Config) -> list[str]:
    """Return a sentence for each value that works, but is outside what an RFC advises, or does less than it says."""
    greylist, smtp, backend = config.greylist, config.smtp, config.backend
    sentences = []
    if greylist.delay < 60:
        sentences.append(f"greylist.delay is {greylist.delay:g}s, RFC 6647 section 5.2 advises 60s or more")
    if greylist.lifetime < 7 * 86400:
        sentences.append(f"greylist.lifetime is {greylist.lifetime:g}s, RFC 6647 section 5.3 advises 7d or more")
    if smtp.command_timeout < 300:
        sentences.append(
            f"smtp.command_timeout is {smtp.command_timeout:g}s, RFC 5321 section 4.5.3.2.7 advises 5m or more"
        )
    if smtp.data_timeout < 180:
        sentences.append(f"smtp.data_timeout is {smtp.data_timeout:g}s, RFC 5321 section 4.5.3.2.5 advises 3m or more")
    if smtp.max_recipients < 100:
        sentences.append(f"smtp.max_recipients is {smtp.max_recipients}, RFC 5321 section 4.5.3.1.8 wants 100 or more")
    if smtp.max_connections_per_client > smtp.max_connections:
        sentences.append("smtp.max_connections_per_client is over smtp.max_connections: one client may take all")
    if backend.max_connections_per_client > backend.max_connections:
        sentences.append("backend.max_connections_per_client is over backend.max_connections: one client may hold all")
    if backend.starttls == "verify":
        sentences += [
            f"backend.starttls is verify, and {host} is an address: its certificate must have that address in it"
            for host in backend.hosts
            if _is_address(host.host)
        ]
    if backend.ca_file is not None and backend.starttls != "verify":
        sentences.append(f"backend.ca_file has no effect while backend.starttls is {backend.starttls}")
    return sentences


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _explain(detail: ErrorDetails, data: object) -> str:
    """Say in one line what pydantic found: key, value (as the file has it), what is allowed."""
    location = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    value = _written(data, detail)
    key = _json(".".join(location))[1:-1]
    if detail["type"] == "extra_forbidden":
        section = _section(location[:-1])
        kind = "key" if len(location) > 1 else "section"
        return f"{key}: unknown {kind}; known here: {', '.join(section.model_fields)}"
    if detail["type"] == "model_type":
        keys = ", ".join(_section(location).model_fields)
        return f"{key} = {_json(value)}: allowed is a section with the keys {keys}"
    if detail["type"] == "value_error" and len(location) < 2:
        # A rule between keys (the validators above): its arguments are the key and what is allowed.
        name, allowed = detail["ctx"]["error"].args
        parent, _ignored, name = ".".join([*location, name]).partition(".")
        written = data.get(parent, {}) if isinstance(data, dict) else {}
        given = f" = {_json(written[name])}" if name in written else ""
        return f"{parent}.{name}{given}: allowed is {allowed}"
    allowed = _section(location[:-1]).model_fields[location[-1]].description
    if detail["type"] == "missing":
        return f"{key}: is missing; allowed is {allowed}"
    return f"{key} = {_json(value)}: allowed is {allowed}"


def _section(location: list[str]) -> type[BaseModel]:
    annotation = Config.model_fields[location[0]].annotation if location else Config
    return cast("type[BaseModel]", annotation)


def _written(data: Any, detail: ErrorDetails) -> object:
    """Find the value in the file: pydantic may tell of what a validator made of it."""
    for part in detail["loc"]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return detail["input"]
    return data


def _json(value: object) -> str:
    # JSON in ASCII: one line, and nothing that a terminal obeys, whatever was in the file.
    text = PASSWORD.sub(r"\1***@", json_line(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
