# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What follows MAIL and RCPT: the path as it came, and the parameters of each extension."""

from __future__ import annotations

import pytest
from greylist_proxy.smtp.address import AddressError
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.parameters import check_mail_parameters, check_rcpt_parameters, has_smtputf8, split

from .costs import cost

ALL = Capabilities(size=0, eightbitmime=True, smtputf8=True, dsn=True)


@pytest.mark.parametrize(
    ("argument", "path", "parameters"),
    [
        ("FROM:<a@far.test>", "a@far.test", []),
        ("from: <a@far.test>  ", "a@far.test", []),
        ("FROM:<>", "", []),
        ("FROM:<> SIZE=10  Body=8bitMime", "", [("SIZE", "10"), ("BODY", "8bitMime")]),
        ("FROM:<>\tA=1 \tB=\u2028 ", "", [("A", "1"), ("B", "\u2028")]),
        ('FROM:<"a> b"@far.test> X', '"a> b"@far.test', [("X", "")]),
        ('FROM:<"a\\"> b"@far.test>', '"a\\"> b"@far.test', []),
        ("FROM:<ä@far.test> X=ö", "ä@far.test", [("X", "ö")]),
    ],
)
def test_arguments(argument: str, path: str, parameters: list[tuple[str, str]]) -> None:
    found, taken = split(argument.encode(), b"FROM:")
    assert (found, [(each.keyword, each.value) for each in taken]) == (path, parameters)
    assert all(each.raw in argument for each in taken)


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"FROM",
        b"FROM:",
        b"TO:<a@far.test>",
        b"FROM:a@far.test",
        b"FROM:<a@far.test",
        b"FROM:<<a@far.test>>",
        b"FROM:<a@far.test>SIZE=1",
        b"FROM:<a b@far.test>",
        b'FROM:<"a@far.test>',
        b"FROM:<a@far.test> (comment)",
        b"FROM:<a@far.test> SIZE=",
        b"FROM:<a@far.test> =1",
        b"FROM:<a@far.test> A=b=c",
        b"FROM:<a@far.test> X=\x00",
        b"FROM:<\xe4@far.test>",
        b"FROM:<a@far.test> X=\xe4",
        b"FROM:<a@far.test>\x0cX=1",
        b"FROM:<a@far.test> X=1\x0bY=2",
        b"FROM:<a@far.test> X=1\x1cY=2",
        b"FROM:<a@far.test> X=1\xc2\x85Y=2 Z=",
        b"FROM:<a@far.test>" + b" X" * 11,
    ],
)
def test_arguments_that_are_refused(argument: bytes) -> None:
    with pytest.raises(AddressError) as caught:
        split(argument, b"FROM:")
    assert caught.value.reply.code == 501


# Eight times the length may cost the square of it, and noise some times that; what tries all ways never ends.
LENGTHS = 8
SQUARE = 4 * LENGTHS**2


@pytest.mark.parametrize(("begin", "repeated"), [(b"", b'"'), (b"", b"a"), (b'"', b"\\a")])
def test_no_argument_takes_long(begin: bytes, repeated: bytes) -> None:
    def refuse(size: int) -> None:
        with pytest.raises(AddressError):
            split(b"FROM:<" + begin + repeated * (size // len(repeated)), b"FROM:")

    assert cost(lambda: refuse(LENGTHS * 250)) < SQUARE * cost(lambda: refuse(250))


@pytest.mark.parametrize("character", ["a", "+41", "ä"])
def test_no_orcpt_takes_long(character: str) -> None:
    def refuse(size: int) -> None:
        _ignored, parameters = split(f"TO:<u@here.test> ORCPT=utf-8;{character * size}+".encode(), b"TO:")
        reply = check_rcpt_parameters(parameters, ALL, smtputf8=True)
        assert reply is not None
        assert reply.code == 501

    assert cost(lambda: refuse(LENGTHS * 20)) < SQUARE * cost(lambda: refuse(20))


# Parameters, and the code that they earn; None where they are fine.
MAIL: dict[str, int | None] = {
    "SIZE=0": None,
    "SIZE=1000": None,
    "SIZE=1001": 552,
    "SIZE=99999999999999999999": 552,
    "SIZE=999999999999999999999": 501,
    "SIZE=x": 501,
    "SIZE=-1": 501,
    "SIZE=\u0661": 501,  # a digit, elsewhere
    "SIZE": 501,
    "SIZE=1 size=1": 501,
    "BODY=7BIT": None,
    "body=8bitmime": None,
    "BODY=BINARYMIME": 501,
    "BODY": 501,
    "BODY=8B\u0131TMIME": 501,  # in upper case, an I
    "SMTPUTF8": None,
    "SMTPUTF8=1": 501,
    "RET=FULL": None,
    "ret=hdrs": None,
    "RET=BODY": 501,
    "ENVID=QQ314159+20x+3D": None,
    "ENVID=" + "x" * 100: None,
    "ENVID=" + "x" * 101: 501,
    "ENVID=a+zz": 501,
    "ENVID=a+": 501,
    "ENVID=a+0D+0Ab": 501,  # a line end, hidden
    "ENVID=ä": 501,
    "ENVID": 501,
    "SIZE=1 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=x": None,
    "AUTH=<>": 555,
    "NOTIFY=NEVER": 555,
    "BY=120;R": 555,
    "X": 555,
}
RCPT: dict[str, int | None] = {
    "NOTIFY=NEVER": None,
    "NOTIFY=success,Failure,DELAY": None,
    "NOTIFY=DELAY": None,
    "NOTIFY=NEVER,DELAY": 501,
    "NOTIFY=DELAY,DELAY": 501,
    "NOTIFY=DELAY,": 501,
    "NOTIFY=X": 501,
    "NOTIFY": 501,
    "NOTIFY=NEVER NOTIFY=NEVER": 501,
    "ORCPT=rfc822;User+2Bx@Here.test": None,
    "ORCPT=utf-8;u\\x{E4}@here.test": None,
    "ORCPT=rfc822;" + "x" * 493: None,
    "ORCPT=rfc822;" + "x" * 494: 501,
    "ORCPT=rfc822;": 501,
    "ORCPT=;x": 501,
    "ORCPT=x": 501,
    "ORCPT=rfc822;a+0Ab": 501,
    "ORCPT=rfc822;ä": 501,
    "SIZE=1": 555,
    "X": 555,
}


@pytest.mark.parametrize("text", MAIL)
def test_parameters_of_mail(text: str) -> None:
    _ignored, parameters = split(f"FROM:<> {text}".encode(), b"FROM:")
    reply = check_mail_parameters(parameters, ALL, 1000)
    assert (reply and reply.code) == MAIL[text]
    assert has_smtputf8(parameters) is ("SMTPUTF8" in text)
    without = check_mail_parameters(parameters, None, 0)
    assert without is not None
    assert without.code == 555
    if MAIL[text] == 552:
        assert check_mail_parameters(parameters, ALL, 0) is None


@pytest.mark.parametrize("text", RCPT)
def test_parameters_of_rcpt(text: str) -> None:
    _ignored, parameters = split(f"TO:<u@here.test> {text}".encode(), b"TO:")
    reply = check_rcpt_parameters(parameters, ALL, smtputf8=False)
    assert (reply and reply.code) == RCPT[text]
    without = check_rcpt_parameters(parameters, Capabilities(size=0, smtputf8=True), smtputf8=True)
    assert without is not None
    assert without.code == 555


@pytest.mark.parametrize(("text", "fine"), [("utf-8;ä@here.test", True), ("UTF-8;ä\u2028", False), ("rfc822;ä", False)])
def test_an_orcpt_that_is_not_ascii_needs_smtputf8(text: str, fine: bool) -> None:
    _ignored, parameters = split(f"TO:<u@here.test> ORCPT={text}".encode(), b"TO:")
    assert (check_rcpt_parameters(parameters, ALL, smtputf8=True) is None) is fine
    assert check_rcpt_parameters(parameters, ALL, smtputf8=False) is not None


def test_words_are_ascii() -> None:
    _ignored, parameters = split("TO:<u@here.test> NOTIFY=\u017fuccess".encode(), b"TO:")
    reply = check_rcpt_parameters(parameters, ALL, smtputf8=True)
    assert reply is not None
    assert reply.code == 501
