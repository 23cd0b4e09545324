# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What senders and recipients are compared by: which addresses are one sender, and which must stay two."""

from __future__ import annotations

import pytest
from greylist_proxy.normalise import address_key, recipient_key
from hypothesis import given
from hypothesis import strategies as st

from .costs import cost

LOCAL = st.text("aBcdef0123456789zZ=+-_.#~/", max_size=64)
ADDRESS = st.one_of(
    st.builds("{}@{}".format, LOCAL, st.sampled_from(["example.org", "EXAMPLE.net", "[192.0.2.1]"])),
    st.builds(
        "{}{}@example.org".format,
        st.lists(
            st.sampled_from(
                ["prvs=1234567890=", "btv1==12==", "SRS0=Ab=Cd=x.org=", "bounce-", "joe+", "a-b=c.org", "12345", "-"]
            ),
            max_size=6,
        ).map("".join),
        LOCAL,
    ),
    st.text(max_size=80),
)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("", ""),
        ("postmaster", "postmaster"),
        ("Joe@EXAMPLE.org", "Joe@example.org"),
        ("joe@[IPv6:2001:DB8::1]", "joe@[ipv6:2001:db8::1]"),
        ("joe@xn--bcher-KVA.example", "joe@xn--bcher-kva.example"),
        ('"joe+x 123456"@Example.org', '"joe+x 123456"@example.org'),
        # internationalised
        ("j\u00fcrgen@B\u00dcCHER.example", "j\u00fcrgen@xn--bcher-kva.example"),
        ("ju\u0308rgen@xn--bcher-kva.example", "j\u00fcrgen@xn--bcher-kva.example"),
        ("j\u00fcrgen+shop@stra\u00dfe.example", "j\u00fcrgen@xn--strae-oqa.example"),
        # BATV
        ("prvs=3120a1b2c3=joe@example.org", "joe@example.org"),
        ("PRVS=3120A1B2C3=joe@example.org", "joe@example.org"),
        ("prvs=183d63ff7=joe@example.org", "joe@example.org"),
        ("prvs=joe=3120a1b2c3@example.org", "joe@example.org"),
        ("btv1==3120a1b2c3==joe@example.org", "joe@example.org"),
        ("msprvs1=18012AbCdEfGh=bounces-265422-36@example.org", "bounces-#-#@example.org"),
        ("prvs=3120a1b2c3=prvs=3120a1b2c3=joe@example.org", "joe@example.org"),
        ("prvs=joe@example.org", "prvs=joe@example.org"),
        # SRS
        ("SRS0=HHH=TT=example.net=joe@example.org", "srs=#@example.org"),
        ("srs0+HHH=TT=example.net=joe@example.org", "srs=#@example.org"),
        ("SRS0-HHH=TT=example.net=ann@example.org", "srs=#@example.org"),
        ("SRS1=HHH=example.com==HHH=TT=example.net=joe@example.org", "srs=#@example.org"),
        ("bounces+SRS=44ldt=IX@example.org", "srs=#@example.org"),
        ("srs0@example.org", "srs0@example.org"),
        # VERP and subaddresses
        ("list-bounces+ann=example.net@example.org", "list-bounces@example.org"),
        ("ann+caf_=joe=example.net@example.org", "ann@example.org"),
        ("notification+kjdmd1j-1h=@example.org", "notification@example.org"),
        ("bounce+2f1b3c.a1b2c3-ann=example.net@mg.example.org", "bounce@mg.example.org"),
        ("list-return-12-ann=example.net@example.org", "list-return-#-#@example.org"),
        ("sentto-1234-56-ann=mail.example.net@example.org", "sentto-#-#-#@example.org"),
        ("+joe@example.org", "+joe@example.org"),
        # ids
        ("bounce-123456-789@example.org", "bounce-#-#@example.org"),
        ("bounce-1@example.org", "bounce-#@example.org"),
        ("b.verp.a1b@example.org", "b.verp.#@example.org"),
        ("news-20241124-ab12cd34@example.org", "news-#-#@example.org"),
        ("news.20241124@example.org", "news.#@example.org"),
        (
            "0102018c1234abcd-5f3c2e1a-1234-4678-9abc-def012345678-000000@eu-west-1.amazonses.example",
            "#-#-#@eu-west-1.amazonses.example",
        ),
        ("bounce1700000000@example.org", "bounce#@example.org"),
        ("msg-k3jd8x2mq@example.org", "msg-#@example.org"),
        ("m-AbCdEfGh12IjKlMnOpQr@example.org", "m-#@example.org"),
        ("return_path.77@example.org", "return_path.#@example.org"),
    ],
)
def test_a_sender(address: str, key: str) -> None:
    assert address_key(address) == key


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("john.smith42", "john.smith43"),
        ("john.42", "john.43"),
        ("john-42", "john-43"),
        ("john.1985", "john.1986"),
        ("john1985", "john1986"),
        ("jane19851231", "jane19860101"),
        ("abe1985", "ada1990"),
        ("12345678", "12345679"),
        ("r2d2", "c3po"),
        ("4ever2you", "4ever2me"),
        ("Joe", "joe"),
        ("info", "sales"),
        ("facade", "decade"),
        ("deadbeef", "cafebabe"),
    ],
)
def test_people_stay_two(first: str, second: str) -> None:
    assert address_key(f"{first}@example.org") != address_key(f"{second}@example.org")


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("Ann+Shop-123456@Example.ORG", "Ann+Shop-123456@example.org"),
        ("prvs=3120a1b2c3=joe@HERE.test", "prvs=3120a1b2c3=joe@here.test"),
        ("Postmaster", "Postmaster"),
        ("", ""),
    ],
)
def test_a_recipient_keeps_its_tags(address: str, key: str) -> None:
    assert recipient_key(address) == key


@given(ADDRESS)
def test_a_key_is_its_own_key(address: str) -> None:
    key = address_key(address)
    assert address_key(key) == key


@given(ADDRESS.filter(str.isascii))
def test_a_key_is_not_longer_and_keeps_the_domain(address: str) -> None:
    key = address_key(address)
    assert len(key) <= len(address)
    assert key.rpartition("@")[1:] == (address.rpartition("@")[1], key.rpartition("@")[2])
    if "@" in address:
        assert key.rpartition("@")[2] == address.rpartition("@")[2].lower()


@pytest.mark.parametrize(
    "repeated",
    ["prvs=123456=", "btv1==1==", "SRS0=", "a+srs=", "+", "-=", "a-b=c.", "1a", "ab12cd34-", "bounce-", "0000-", "1"],
)
def test_no_address_takes_long(repeated: str) -> None:
    def costs(size: int) -> float:
        address = f"{(repeated * size)[:size]}@example.org"
        return cost(lambda: address_key(address))

    # Eight times the length may take the square of it (rounds and length grow together), and noise four times that;
    # a search that backtracks takes the cube or worse.
    assert costs(4096) < 64 * 4 * costs(512)
