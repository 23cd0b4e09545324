# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands show: nothing that a terminal obeys, times, and tables that fit."""

from __future__ import annotations

import io
import unicodedata
from typing import Literal

import pytest
from greylist_proxy.commands.decisions import COLUMNS as DECISIONS
from greylist_proxy.commands.entries import COLUMNS as ENTRIES
from greylist_proxy.commands.output import Column, arrange, local_time, show_fields, show_table, span, visible
from greylist_proxy.commands.triplets import COLUMNS as TRIPLETS
from greylist_proxy.moments import iso_time
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

TIME = "2026-11-24 21:31:05 CET"
TRIPLET = ["192.0.2.0/24", "news@example.net", "user@example.org", "known, expires in 36d", TIME, TIME]
DECISION = [TIME, "192.0.2.7", "news@example.net", "user@example.org", "defer, 60s", "pending-cap", "0A1B2C3D4E5F.1"]
ENTRY = ["recipient", "otp@example.org", "allow", "operator", TIME, TIME, "one-time passwords"]


def render(columns: tuple[Column, ...], rows: list[list[str]], width: int, *, colour: bool = False) -> str | None:
    stream = io.StringIO()
    table = arrange(columns, rows, width)
    if table is None:
        return None
    system: Literal["standard"] | None = "standard" if colour else None
    Console(file=stream, width=width, force_terminal=True, color_system=system, markup=False).print(table)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain@example.net", "plain@example.net"),
        ("jürgen@example.net", "jürgen@example.net"),
        ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"),
        ("a\x1b[31mred", "a\\u001b[31mred"),
        ("a\nb\r\tc", "a\\u000ab\\u000d\\u0009c"),
        ("\x7f\x9b", "\\u007f\\u009b"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("soft\u00adhyphen", "soft\\u00adhyphen"),
        ("no\u00a0break\u2028line", "no\\u00a0break\\u2028line"),
        ("filler\u3164\u115f", "filler\\u3164\\u115f"),
        ("selector\ufe0f", "selector\\ufe0f"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("half\udc80", "half\\udc80"),
        ("", ""),
    ],
)
def test_what_is_not_shown_as_itself_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys_or_hides(text: str) -> None:
    shown = visible(text)
    assert all(unicodedata.category(char)[0] not in "CZ" or char == " " for char in shown)
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.usefixtures("vienna")
@pytest.mark.parametrize(
    ("seconds", "people", "programs"),
    [
        (1_700_000_000.0, "2023-11-14 23:13:20 CET", "2023-11-14T22:13:20.000+00:00"),
        (1_690_000_000.25, "2023-07-22 06:26:40 CEST", "2023-07-22T04:26:40.250+00:00"),
        (None, "", None),
        (1e20, "1e+20", None),
    ],
)
def test_times(seconds: float | None, people: str, programs: str | None) -> None:
    assert local_time(seconds) == people
    assert iso_time(seconds) == programs


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (1, "1s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "120m"),
        (7200, "2h"),
        (172_799, "48h"),
        (36 * 86400, "36d"),
    ],
)
def test_spans(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def lines(columns: tuple[Column, ...], row: list[str], width: int) -> list[str]:
    text = render(columns, [row], width)
    assert text is not None
    return [line.rstrip() for line in text.splitlines()]


def test_a_wide_terminal_has_each_row_on_one_line() -> None:
    assert lines(TRIPLETS, TRIPLET, 160) == [
        "client        sender            recipient         state                  first seen               last used",
        "192.0.2.0/24  news@example.net  user@example.org  known, expires in 36d  2026-11-24 21:31:05 CET  "
        "2026-11-24 21:31:05 CET",
    ]


def test_120_columns_break_times_first() -> None:
    assert lines(TRIPLETS, TRIPLET, 120) == [
        "client        sender            recipient         state                  first seen    last used",
        "192.0.2.0/24  news@example.net  user@example.org  known, expires in 36d  2026-11-24    2026-11-24",
        "                                                                         21:31:05 CET  21:31:05 CET",
    ]


def test_80_columns_stack_what_belongs_together() -> None:
    assert lines(TRIPLETS, TRIPLET, 80) == [
        "client                   sender              first seen",
        "  state                    recipient           last used",
        "192.0.2.0/24             news@example.net    2026-11-24 21:31:05 CET",
        "  known, expires in 36d    user@example.org    2026-11-24 21:31:05 CET",
    ]


@pytest.mark.parametrize(("columns", "row"), [(TRIPLETS, TRIPLET), (DECISIONS, DECISION), (ENTRIES, ENTRY)])
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("long", ["", "x" * 240])
def test_nothing_is_cut_and_nothing_is_too_wide(
    columns: tuple[Column, ...], row: list[str], width: int, long: str
) -> None:
    index = [column.heading for column in columns].index("value" if columns is ENTRIES else "sender")
    cells = [text + long if place == index else text for place, text in enumerate(row)]
    text = render(columns, [cells], width)
    assert text is not None
    assert max(map(cell_len, text.splitlines())) <= width
    left = sorted("".join(text.split()))
    assert left == sorted("".join([*(column.heading for column in columns), *cells]).replace(" ", ""))


@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=60), min_size=6, max_size=6),
    st.integers(1, 200),
)
def test_any_text_fits_any_width_or_no_table_is_made(row: list[str], width: int) -> None:
    row = [visible(cell) for cell in row]
    text = render(TRIPLETS, [row], width)
    assert text is None or max(map(cell_len, text.splitlines())) <= width


def test_a_terminal_too_narrow_for_a_table_wraps_by_itself() -> None:
    assert arrange(TRIPLETS, [TRIPLET], 20) is None


def test_words_have_colours_and_addresses_have_none() -> None:
    row = ["192.0.2.0/24", "known@example.net", "pending", "pending, may pass now", TIME, ""]
    text = render(TRIPLETS, [row], 200, colour=True)
    assert text is not None
    assert "\x1b[33mpending\x1b[0m, may pass now" in text
    assert text.count("\x1b[33m") == 1
    assert "\x1b[32m" not in text


def test_a_pipe_gets_one_padded_line_a_row_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (Column("name", 0, least=8), Column("number", 1, right=True))
    show_table(columns, [["[red]" + "x" * 300, "7"], ["漢字\x1b", "12"]])
    assert capsys.readouterr().out.splitlines() == [
        f"name{' ' * 301}  number",
        f"[red]{'x' * 300}       7",
        f"漢字\\u001b{' ' * 295}      12",
    ]


def test_fields_line_up_and_empty_ones_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show_fields([("a", "1"), ("longer", "[b]\x1b"), ("none", "")], "title")
    assert capsys.readouterr().out == "title\n  a       1\n  longer  [b]\\u001b\n"
