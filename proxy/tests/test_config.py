# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: what is taken, what it means, and what an error says."""

from __future__ import annotations

from pathlib import Path

import pytest
from greylist_proxy.cli import main
from greylist_proxy.config import Config, ConfigError, Endpoint, advice, load
from greylist_proxy.policy import Rules

LEAST = """
[backend]
hosts = ["mail01.example.org:25"]
domains = ["Example.org"]
"""


def parse(folder: Path, text: str) -> Config:
    path = folder / "config.toml"
    path.write_text(text)
    return load(path)


def errors(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(folder, text)
    prefix = f"{folder}/config.toml: "
    assert all(line.startswith(prefix) for line in caught.value.lines)
    return [line.removeprefix(prefix) for line in caught.value.lines]


def test_the_least_configuration_and_the_defaults(tmp_path: Path) -> None:
    config = parse(tmp_path, LEAST)
    assert config.backend.hosts == [Endpoint("mail01.example.org", 25)]
    assert config.backend.domains == ["example.org"]
    assert [str(each) for each in config.smtp.listen] == ["0.0.0.0:25", "[::]:25"]
    assert config.smtp.hostname
    assert config.smtp.max_message_size == 35 * 1024 * 1024
    assert config.greylist.rules == Rules(60, 48 * 3600, 36 * 86400)
    assert (config.greylist.ipv4_prefix, config.greylist.ipv6_prefix) == (24, 64)
    assert str(config.store.url) == "/var/lib/greylist-proxy/greylist.db"
    assert config.store.on_failure == "accept"
    assert advice(config) == []


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ('"90s"', 90),
        ('"5m"', 300),
        ('"24h"', 86400),
        ('"1d"', 86400),
        ("90", 90),
        ("1.5", 1.5),
        ("0", 0),
        ('"0s"', 0),
    ],
)
def test_durations(tmp_path: Path, written: str, seconds: float) -> None:
    assert parse(tmp_path, f"{LEAST}[greylist]\ndelay = {written}").greylist.delay == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [('"64KiB"', 65536), ('"65536B"', 65536), ('"35MiB"', 36700160), ('"1GiB"', 1 << 30), ("70000", 70000)],
)
def test_sizes(tmp_path: Path, written: str, size: int) -> None:
    assert parse(tmp_path, f"{LEAST}[smtp]\nmax_message_size = {written}").smtp.max_message_size == size


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        ('"127.0.0.1:2525"', Endpoint("127.0.0.1", 2525)),
        ('"[2001:DB8::1]:2525"', Endpoint("2001:db8::1", 2525)),
        ('"mail:25"', Endpoint("mail", 25)),
    ],
)
def test_hosts(tmp_path: Path, written: str, endpoint: Endpoint) -> None:
    config = parse(tmp_path, f"[backend]\nhosts = [{written}]\ndomains = ['a.test']")
    assert config.backend.hosts == [endpoint]


DURATION = "a duration such as 90s, 5m, 24h or seconds, from 0s to 24h"
LISTEN = 'a list of IP addresses with ports, such as ["0.0.0.0:25", "[::]:25"], each once'
HOSTS = 'a list of hosts with ports, such as ["mail01.example.org:25"], each once, tried in order'
DOMAINS = 'a list of mail domains, such as ["example.org"], international ones in their xn-- form'
SIZE = "a size such as 35MiB (B, KiB, MiB, GiB) or a number of bytes, from 64KiB to 1GiB"
WINDOW = "a duration such as 90s, 48h, 2d or seconds, longer than delay, to 30d"
LIFETIME = "a duration such as 24h, 36d or seconds, from retry_window to 400d"
GREYLIST_KEYS = "delay, retry_window, lifetime, ipv4_prefix, ipv6_prefix"
URL = "sqlite:/// and an absolute path, such as sqlite:////var/lib/greylist-proxy/greylist.db"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        # durations
        *(
            (f"[greylist]\ndelay = {value}", f"greylist.delay = {value}: allowed is {DURATION}")
            for value in ('"25h"', '"90"', '"90 s"', '"-1s"', '"1.5m"', '"5M"', '""', "-1", "true", "[]", '"1w"')
        ),
        ("[greylist]\ndelay = nan", f"greylist.delay = NaN: allowed is {DURATION}"),
        ("[greylist]\ndelay = inf", f"greylist.delay = Infinity: allowed is {DURATION}"),
        (
            '[greylist]\ndelay = "2h"\nretry_window = "2h"',
            'greylist.retry_window = "2h": allowed is longer than delay (7200 seconds)',
        ),
        (
            '[greylist]\nlifetime = "1h"',
            'greylist.lifetime = "1h": allowed is at least retry_window (172800 seconds)',
        ),
        (
            '[greylist]\nretry_window = "31d"',
            f'greylist.retry_window = "31d": allowed is {WINDOW}',
        ),
        (
            '[greylist]\nlifetime = "401d"',
            f'greylist.lifetime = "401d": allowed is {LIFETIME}',
        ),
        (
            "[greylist]\nipv4_prefix = 33",
            "greylist.ipv4_prefix = 33: allowed is a whole number of bits, from 8 to 32",
        ),
        (
            "[greylist]\nipv4_prefix = 0",
            "greylist.ipv4_prefix = 0: allowed is a whole number of bits, from 8 to 32",
        ),
        (
            '[greylist]\nipv4_prefix = "24"',
            'greylist.ipv4_prefix = "24": allowed is a whole number of bits, from 8 to 32',
        ),
        (
            "[greylist]\nipv6_prefix = 12.5",
            "greylist.ipv6_prefix = 12.5: allowed is a whole number of bits, from 16 to 128",
        ),
        # sizes
        *(
            (f"[smtp]\nmax_message_size = {value}", f"smtp.max_message_size = {value}: allowed is {SIZE}")
            for value in ('"35MB"', '"1KiB"', '"2GiB"', "70000.5", '"MiB"', "true")
        ),
        # addresses
        *(
            (f"[smtp]\nlisten = [{value}]", f"smtp.listen = {value}: allowed is {LISTEN}")
            for value in (
                '"25"',
                '"localhost:25"',
                '"127.0.0.1"',
                '"::1:25"',
                '"[::1]"',
                '"127.0.0.1:65536"',
                "25",
                '"1.2.3:25"',
            )
        ),
        ("[smtp]\nlisten = []", f"smtp.listen = []: allowed is {LISTEN}"),
        ('[smtp]\nlisten = "127.0.0.1:25"', f'smtp.listen = "127.0.0.1:25": allowed is {LISTEN}'),
        (
            '[smtp]\nlisten = ["[::1]:25", "[0:0::1]:25"]',
            f'smtp.listen = ["[::1]:25", "[0:0::1]:25"]: allowed is {LISTEN}',
        ),
        (
            '[smtp]\nhostname = "mx 1"',
            'smtp.hostname = "mx 1": allowed is this host\'s name in the DNS, such as mx1.example.org '
            "(default: the system's own)",
        ),
        # the store
        *(
            (f"[store]\nurl = {value}", f"store.url = {value}: allowed is {URL}")
            for value in ('"sqlite:///relative.db"', '"/path"', '"valkey://host:6379/0"', '"sqlite:////dir/"', "1")
        ),
        (
            '[store]\non_failure = "drop"',
            'store.on_failure = "drop": allowed is "accept" (mail goes on ungreylisted) or "defer"',
        ),
        # what is not known here, as long as it is not built
        (
            "[greylist]\ndealy = 1",
            f"greylist.dealy: unknown key; known here: {GREYLIST_KEYS}",
        ),
        ("[smtp]\ntls_key = ''", "smtp.tls_key: unknown key; known here: listen, hostname, max_message_size"),
        ("[tarpit]\nseconds = 5", "tarpit: unknown section; known here: smtp, backend, greylist, store"),
        (
            '[smtp]\n"a\\u001b[31m\\nb" = 1',
            "smtp.a\\u001b[31m\\nb: unknown key; known here: listen, hostname, max_message_size",
        ),
        (
            "[[greylist]]\ndelay = 1",
            f'greylist = [{{"delay": 1}}]: allowed is a section with the keys {GREYLIST_KEYS}',
        ),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(tmp_path: Path, text: str, error: str) -> None:
    assert errors(tmp_path, LEAST + text) == [error]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "",
            [
                f"backend.hosts: is missing; allowed is {HOSTS}",
                f"backend.domains: is missing; allowed is {DOMAINS}",
            ],
        ),
        (
            '[backend]\nhosts = ["mail", "mail:0", "999.1.1.1:25", "a b:25", "[mail]:25"]\ndomains = []',
            [
                *(
                    f'backend.hosts = "{each}": allowed is {HOSTS}'
                    for each in ("mail", "mail:0", "999.1.1.1:25", "a b:25")
                ),
                f'backend.hosts = "[mail]:25": allowed is {HOSTS}',
                f"backend.domains = []: allowed is {DOMAINS}",
            ],
        ),
        (
            "[backend]\nhosts = ['a:25', 'a:25']\ndomains = ['*.test', 'bücher.test', 'a.test.', 'ok.test', 5]",
            [
                f'backend.hosts = ["a:25", "a:25"]: allowed is {HOSTS}',
                f'backend.domains = "*.test": allowed is {DOMAINS}',
                f'backend.domains = "b\\u00fccher.test": allowed is {DOMAINS}',
                f'backend.domains = "a.test.": allowed is {DOMAINS}',
                f"backend.domains = 5: allowed is {DOMAINS}",
            ],
        ),
        (
            "colour = 1\n[backend]\ndomains = ['a.test']\n[greylist]\ndelay = 'x'\n[store]\non_failure = 1\n",
            [
                f"backend.hosts: is missing; allowed is {HOSTS}",
                f'greylist.delay = "x": allowed is {DURATION}',
                'store.on_failure = 1: allowed is "accept" (mail goes on ungreylisted) or "defer"',
                "colour: unknown section; known here: smtp, backend, greylist, store",
            ],
        ),
        ("[smtp", ["not TOML: Expected ']' at the end of a table declaration (at end of document)"]),
    ],
)
def test_all_errors_at_once(tmp_path: Path, text: str, lines: list[str]) -> None:
    assert errors(tmp_path, text) == lines


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("0.0.0.0:25", "127.0.0.1:25"),
        ("[::]:25", "localhost:25"),
        ("192.0.2.1:25", "192.0.2.1:25"),
        ("[::]:25", "[::1]:25"),
    ],
)
def test_a_proxy_is_not_its_own_backend(tmp_path: Path, listen: str, host: str) -> None:
    text = f'[smtp]\nlisten = ["{listen}"]\n[backend]\nhosts = ["{host}"]\ndomains = ["a.test"]'
    assert errors(tmp_path, text) == [f"backend.hosts: allowed is a mail server, not this proxy's own listener {host}"]
    assert parse(tmp_path, text.replace(f'hosts = ["{host}"]', 'hosts = ["127.0.0.1:2525"]'))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('delay = "59s"', ["greylist.delay is 59s, RFC 6647 section 5.2 advises 60s or more"]),
        ('lifetime = "6d"', ["greylist.lifetime is 518400s, RFC 6647 section 5.3 advises 7d or more"]),
        ('delay = "60s"\nlifetime = "7d"', []),
    ],
)
def test_advice(tmp_path: Path, text: str, sentences: list[str]) -> None:
    assert advice(parse(tmp_path, f"{LEAST}[greylist]\n{text}")) == sentences


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert errors(tmp_path, LEAST + "#" * (1 << 20)) == ["larger than 1048576 bytes, which no configuration is"]
    (tmp_path / "config.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text: invalid start byte at byte 2"):
        load(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="can't be read: No such file or directory"):
        load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"{LEAST}[greylist]\ndelay = 5")
    assert main(["check-config", "--config", str(path)]) == 0
    assert capsys.readouterr() == (
        f"{path}: ok\n",
        f"greylist-proxy: {path}: warning: greylist.delay is 5s, RFC 6647 section 5.2 advises 60s or more\n",
    )
    path.write_text("[greylist]\ndelay = -5")
    assert main(["check-config", "--config", str(path)]) == 2
    assert main(["serve", "--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count(f"greylist-proxy: {path}: greylist.delay = -5: allowed is ") == 2


@pytest.mark.parametrize(
    "arguments", [[], ["serve"], ["check-config", "--conf", "x"], ["explain"], ["serve", "--config", "x", "extra"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: greylist-proxy")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, part in (
        (["--help"], "exit status:"),
        (["--version"], "greylist-proxy 0."),
        (["serve", "--help"], "--config FILE"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert part in capsys.readouterr().out
