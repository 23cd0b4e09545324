# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: what is taken, what it means, and what an error says."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from greylist_proxy.cli import main
from greylist_proxy.config import Config, ConfigError, advice, load
from greylist_proxy.config_sections import BackendSection, SmtpSection
from greylist_proxy.config_values import DnsList, Endpoint
from greylist_proxy.policy import Mode, Rules

from .valkey_servers import make_certificate

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
    assert config.greylist.rules == Rules(60, 48 * 3600, 36 * 86400, 5, 1000, Mode.ENFORCE)
    assert config.greylist.client_key == "spf"
    assert config.greylist.reply == "Greylisted, try again in {seconds} seconds ({id})"
    assert (config.allow.client_files, config.allow.well_known, config.allow.dns_lists) == ([], True, [])
    assert config.dns.servers == []
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
GREYLIST_KEYS = (
    "mode, delay, retry_window, lifetime, client_key, auto_allow_after, max_pending_per_network, reply, ipv4_prefix, "
    "ipv6_prefix"
)
SECTIONS = "smtp, backend, greylist, allow, trap, dns, store, tarpit, admin"
ADMIN = "an IP address with a port, such as 127.0.0.1:8025, one beyond this host only with token_file, or empty: none"
SOCKET = (
    'the absolute path of a Unix socket, or "off", or empty: control.sock in the folder that systemd has made, else '
    "beside the SQLite file, else none"
)
SMTP_KEYS = ", ".join(SmtpSection.model_fields)
URL = (
    "sqlite:/// and an absolute path, such as sqlite:////var/lib/greylist-proxy/greylist.db, or valkey://host:6379/0, "
    "valkey+sentinel://host:26379,host:26379/NAME/0, valkey+cluster://host:6379,host:6379 (valkeys for TLS; redis and "
    "rediss are the same), without a password: that goes into password_file"
)
REPLY = "one line of printable ASCII with {id} in it, and {seconds} where wanted, up to 400 characters"
SERVERS = (
    'a list of IP addresses, with ports where not 53, such as ["127.0.0.1", "[::1]:5353"]; none: the system\'s own'
)
DNS_LISTS = 'a list of DNS allow-lists with the answers that count, such as ["list.dnswl.org=127.0.[0..255].[2..3]"]'


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("valkey://h:6379", "valkey://h:6379/0"),
        ("redis://[::1]:6379/3", "valkey://[::1]:6379/3"),
        ("valkeys://h.test:6379/0", "valkeys://h.test:6379/0"),
        ("rediss://10.0.0.1:1/", "valkeys://10.0.0.1:1/0"),
        ("valkey+sentinel://a:26379,b:26379/main", "valkey+sentinel://a:26379,b:26379/main/0"),
        ("rediss+sentinel://a:26379/main/2", "valkeys+sentinel://a:26379/main/2"),
        ("redis+cluster://a:1,b:2,c:3", "valkey+cluster://a:1,b:2,c:3"),
        ("valkey+cluster://a:1/", "valkey+cluster://a:1"),
    ],
)
def test_store_addresses(tmp_path: Path, written: str, address: str) -> None:
    assert str(parse(tmp_path, f'{LEAST}[store]\nurl = "{written}"').store.url) == address


@pytest.mark.parametrize("password", ["geheim", "geheim@x", "gehe/im", "gehe?im#", "gehe im", 'gehe\\"im', "://geheim"])
@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_password_in_a_store_address_is_refused_and_not_shown(tmp_path: Path, password: str, slashes: str) -> None:
    (line,) = errors(tmp_path, LEAST + f'[store]\nurl = "valkey:{slashes}user:{password}@host:6379/0"')
    assert line == f'store.url = "valkey:{slashes}***@host:6379/0": allowed is {URL}'


@pytest.mark.parametrize(
    ("written", "servers"),
    [
        ('"127.0.0.1"', ["127.0.0.1:53"]),
        ('"::1"', ["[::1]:53"]),
        ('"[::1]:5353", "10.1.2.3:54"', ["[::1]:5353", "10.1.2.3:54"]),
    ],
)
def test_name_servers(tmp_path: Path, written: str, servers: list[str]) -> None:
    assert [str(each) for each in parse(tmp_path, f"{LEAST}[dns]\nservers = [{written}]").dns.servers] == servers


def test_dns_lists(tmp_path: Path) -> None:
    text = f'{LEAST}[allow]\ndns_lists = ["List.test=127.0.[0..2;9].[1;3]"]'
    octets = (frozenset({127}), frozenset({0}), frozenset({0, 1, 2, 9}), frozenset({1, 3}))
    assert parse(tmp_path, text).allow.dns_lists == [DnsList("list.test", octets)]


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
            for value in (
                '"sqlite:///relative.db"',
                '"/path"',
                '"sqlite:////dir/"',
                "1",
                '"mysql://host:6379/0"',
                '"valkey://host"',
                '"valkey://a:1,b:2/0"',
                '"valkey://host:6379/x"',
                '"valkey://host:6379/0/1"',
                '"valkey+sentinel://host:26379"',
                '"valkey+sentinel://host:26379/a b/0"',
                '"valkey+cluster://host:6379/0"',
                '"valkey://:6379/0"',
            )
        ),
        (
            '[store]\npassword_file = "secret"',
            'store.password_file = "secret": allowed is the absolute path of a file that holds the Valkey password, '
            "or empty",
        ),
        ('[store]\nprefix = "a:b"', None),
        # the greylist
        *(
            (f"[greylist]\nreply = {value}", f"greylist.reply = {value}: allowed is {REPLY}")
            for value in ('"Go away"', '"{id} {name}"', '"{id}\\r\\n250 OK"', '"b\\u00fccher {id}"', "5")
        ),
        ('[greylist]\nmode = "on"', None),
        ('[greylist]\nclient_key = "helo"', None),
        ("[greylist]\nauto_allow_after = -1", None),
        ("[greylist]\nmax_pending_per_network = 9", None),
        # lists and the DNS
        ('[allow]\nclient_files = ["relative"]', None),
        ('[trap]\nblock = "2h"', None),
        *(
            (f"[dns]\nservers = [{value}]", f"dns.servers = {value}: allowed is {SERVERS}")
            for value in ('"dns.example.org"', '"127.0.0.1:0"', '"1.2.3"', "53")
        ),
        *(
            (f"[allow]\ndns_lists = [{value}]", f"allow.dns_lists = {value}: allowed is {DNS_LISTS}")
            for value in (
                '"list.test"',
                '"list.test=127.0.0"',
                '"list.test=127.0.0.256"',
                '"list.test=10.0.0.1"',
                '"list.test=127.0.0.[]"',
                '"list.test=127.0.0.[3..1]"',
                '"=127.0.0.1"',
            )
        ),
        (
            '[store]\non_failure = "drop"',
            'store.on_failure = "drop": allowed is "accept" (mail goes on ungreylisted) or "defer"',
        ),
        # the relay
        *(
            (f"[smtp]\nproxy_protocol_from = [{value}]", None)
            for value in ('"0.0.0.0/0"', '"::/0"', '"::ffff:0:0/96"', '"::/1"', '"192.0.2.1/24"', '"proxy.test"', "1")
        ),
        ('[smtp]\nproxy_protocol_from = ["192.0.2.0/24", "192.0.2.0/24"]', None),
        (
            '[smtp]\ntls_key = "/key.pem"',
            "smtp.tls_certificate: allowed is a file where tls_key is one: both or neither",
        ),
        (
            '[smtp]\ntls_certificate = "/cert.pem"\ntls_key = ""',
            'smtp.tls_key = "": allowed is a file where tls_certificate is one: both or neither',
        ),
        *(
            (f"[smtp]\n{line}", None)
            for line in (
                "max_connections = 0",
                "max_connections_per_client = 0",
                "workers = -1",
                "workers = 1.5",
                "max_recipients = 0",
                'command_timeout = "2h"',
                "data_timeout = 0",
                'session_timeout = "2d"',
                "min_data_rate = -1",
                'bare_line_ends = "keep"',
                'max_header_size = "1KiB"',
                "max_hops = 9",
                'receive_buffer = "1GiB"',
            )
        ),
        (
            '[smtp]\nsession_timeout = "5m"',
            'smtp.session_timeout = "5m": allowed is longer than command_timeout (300 seconds) and data_timeout '
            "(180 seconds)",
        ),
        ('[tarpit]\nseconds = "3m"', None),
        ('[tarpit]\ngreet_delay = "2m"', None),
        (
            "[tarpit]\nmax_waiting = 5000",
            "tarpit.max_waiting = 5000: allowed is below smtp.max_connections (5000)",
        ),
        (
            "[smtp]\nmax_connections = 100",
            "tarpit.max_waiting: allowed is below smtp.max_connections (100)",
        ),
        # what is not known here, as long as it is not built
        (
            "[greylist]\ndealy = 1",
            f"greylist.dealy: unknown key; known here: {GREYLIST_KEYS}",
        ),
        ("[smtp]\nstarttls = ''", f"smtp.starttls: unknown key; known here: {SMTP_KEYS}"),
        (
            "[admin]\nlisten = '0.0.0.0:8025'",
            'admin.listen = "0.0.0.0:8025": allowed is an address of this host alone, such as 127.0.0.1:8025, without '
            "token_file",
        ),
        ("[admin]\nlisten = 'localhost:8025'", f'admin.listen = "localhost:8025": allowed is {ADMIN}'),
        ("[admin]\nlisten = '8025'", f'admin.listen = "8025": allowed is {ADMIN}'),
        ("[admin]\nsocket = 'none'", f'admin.socket = "none": allowed is {SOCKET}'),
        ("[dashboard]\ntitle = ''", f"dashboard: unknown section; known here: {SECTIONS}"),
        (
            '[smtp]\n"a\\u001b[31m\\nb" = 1',
            f"smtp.a\\u001b[31m\\nb: unknown key; known here: {SMTP_KEYS}",
        ),
        (
            "[[greylist]]\ndelay = 1",
            f'greylist = [{{"delay": 1}}]: allowed is a section with the keys {GREYLIST_KEYS}',
        ),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(tmp_path: Path, text: str, error: str | None) -> None:
    (line,) = errors(tmp_path, LEAST + text)
    if error is None:  # the description of the key, whatever it says
        section, key = text.split("]")[0].strip("["), text.split("\n")[1].split(" = ")[0]
        allowed = Config.model_fields[section].annotation.model_fields[key].description  # type: ignore[union-attr]
        assert line.startswith(f"{section}.{key} = ")
        assert line.endswith(f": allowed is {allowed}")
    else:
        assert line == error


@pytest.mark.parametrize(
    "line",
    [
        'unknown_domain = "accept"',
        'recipients = "users"',
        'verify_recipient_first = "yes"',
        'send_client_address = "proxy"',
        "starttls = true",
        'ca_file = "ca.pem"',
        'capabilities = ["CHUNKING"]',
        'capabilities = ["8BITMIME=1"]',
        'capabilities = ["SIZE x"]',
        'capabilities = ["SIZE 5", "size"]',
        "max_connections = 0",
        "max_connections_per_client = -1",
        "idle_connections = -1",
        "idle_timeout = 0",
    ],
)
def test_errors_of_the_backend(tmp_path: Path, line: str) -> None:
    key = line.partition(" = ")[0]
    allowed = BackendSection.model_fields[key].description
    (error,) = errors(tmp_path, f"{LEAST}{line}")
    assert error.startswith(f"backend.{key} = ")
    assert error.endswith(f": allowed is {allowed}")


def test_the_relays_settings(tmp_path: Path) -> None:
    config = parse(
        tmp_path,
        """
        [smtp]
        proxy_protocol_from = ["192.0.2.0/28", "2001:db8::7"]
        tls_certificate = "/cert.pem"
        tls_key = "/key.pem"
        receive_buffer = 0
        [backend]
        hosts = ["mail01.example.org:25"]
        domains = ["example.org"]
        recipients = "/users"
        capabilities = ["SIZE 36700160", "8BITMIME", "smtputf8"]
        [tarpit]
        seconds = "5s"
        """,
    )
    assert config.smtp.proxy_protocol_from == [ip_network("192.0.2.0/28"), ip_network("2001:db8::7/128")]
    assert (config.smtp.tls_certificate, config.smtp.tls_key) == (Path("/cert.pem"), Path("/key.pem"))
    assert config.smtp.receive_buffer == 0
    assert config.backend.recipients == Path("/users")
    assert config.backend.capabilities == ["SIZE 36700160", "8BITMIME", "smtputf8"]
    assert config.tarpit.seconds == 5


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
                f"colour: unknown section; known here: {SECTIONS}",
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
    assert errors(tmp_path, text) == [
        f'backend.hosts = ["{host}"]: allowed is a mail server, not this proxy\'s own listener {host}'
    ]
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


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            '[smtp]\ncommand_timeout = "1m"\ndata_timeout = "1m"\nmax_recipients = 99',
            [
                "smtp.command_timeout is 60s, RFC 5321 section 4.5.3.2.7 advises 5m or more",
                "smtp.data_timeout is 60s, RFC 5321 section 4.5.3.2.5 advises 3m or more",
                "smtp.max_recipients is 99, RFC 5321 section 4.5.3.1.8 wants 100 or more",
            ],
        ),
        (
            "[smtp]\nmax_connections_per_client = 5001",
            ["smtp.max_connections_per_client is over smtp.max_connections: one client may take all"],
        ),
        (
            "max_connections_per_client = 101",
            ["backend.max_connections_per_client is over backend.max_connections: one client may hold all"],
        ),
    ],
)
def test_advice_for_sessions(tmp_path: Path, text: str, sentences: list[str]) -> None:
    assert advice(parse(tmp_path, f"{LEAST}{text}")) == sentences


def test_advice_for_tls_at_the_backend(tmp_path: Path) -> None:
    text = '[backend]\nhosts = ["mail.test:25", "10.0.0.1:25", "[::1]:2525"]\ndomains = ["a.test"]\n'
    assert advice(parse(tmp_path, f'{text}starttls = "verify"\nca_file = "/ca"')) == [
        f"backend.starttls is verify, and {host} is an address: its certificate must have that address in it"
        for host in ("10.0.0.1:25", "[::1]:2525")
    ]
    assert advice(parse(tmp_path, f'{text}ca_file = "/ca"')) == [
        "backend.ca_file has no effect while backend.starttls is opportunistic"
    ]


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LEAST + '[store]\npassword_file = "$CREDENTIALS_DIRECTORY/store_password"\n'
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert parse(tmp_path, text).store.password_file == tmp_path / "credentials/store_password"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/some.service")
    assert str(parse(tmp_path, text).store.password_file) == "/run/credentials/some.service/store_password"
    # Nothing else is a variable.
    assert errors(tmp_path, text.replace("$CREDENTIALS", "$OTHER"))[0].startswith(
        'store.password_file = "$OTHER_DIRECTORY/store_password": allowed is'
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert errors(tmp_path, LEAST + "#" * (1 << 20)) == ["larger than 1048576 bytes, which no configuration is"]
    (tmp_path / "config.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text: invalid start byte at byte 2"):
        load(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="can't be read: No such file or directory"):
        load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_that_nobody_can_hold(tmp_path: Path, digits: int) -> None:
    [line] = errors(tmp_path, f"{LEAST}[greylist]\ndelay = {'9' * digits}")
    assert line.startswith(("greylist.delay = 999", "not TOML: "))


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


def test_check_config_reads_the_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, clients = tmp_path / "config.toml", tmp_path / "whitelist_clients"
    path.write_text(f'{LEAST}[allow]\nclient_files = ["{clients}"]')
    for command in ("check-config", "serve"):
        assert main([command, "--config", str(path)]) == 2
        assert f"greylist-proxy: {clients}: " in capsys.readouterr().err
    clients.write_text("192.0.2.1\n/(/\n")
    assert main(["check-config", "--config", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}: ok\n"
    assert captured.err.startswith(f"greylist-proxy: {path}: warning: {clients}:2: ")


@pytest.mark.parametrize("key", ["password_file", "sentinel_password_file", "ca_file"])
@pytest.mark.parametrize("content", [None, b""])
def test_check_config_reads_what_the_store_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, content: bytes | None
) -> None:
    path, file = tmp_path / "config.toml", tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    path.write_text(
        f'{LEAST}[smtp]\nlisten = ["127.0.0.1:0"]\n[admin]\nlisten = ""\n'
        f'[store]\nurl = "valkeys://db.test:6379"\n{key} = "{file}"'
    )
    for command in ("check-config", "serve"):
        assert main([command, "--config", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"greylist-proxy: store.{key} = {file}: ")
    authority = make_certificate(tmp_path, "server", "127.0.0.1").authority
    file.write_bytes(authority.read_bytes() if key == "ca_file" else b"secret")
    assert main(["check-config", "--config", str(path)]) == 0


def test_check_config_makes_no_store(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'{LEAST}[store]\nurl = "sqlite:///{tmp_path}/greylist.db"')
    assert main(["check-config", "--config", str(path)]) == 0
    assert list(tmp_path.iterdir()) == [path]


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
