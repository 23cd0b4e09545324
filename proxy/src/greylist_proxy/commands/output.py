# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How results are shown: tables for people, JSON Lines for programs.

    a terminal     a table that fits its width, in colour unless NO_COLOR is set
    a pipe, file   one row a line, columns padded, nothing cut or folded; no colour
    --json         one object a line, ASCII, times as ISO 8601 in UTC, values as the store has them

Where a table does not fit a terminal, times are broken into date and time, then addresses are folded, then columns
that belong together are stacked: a row stays one block that can be read, and nothing is cut off.

What came from outside is never trusted with the terminal: `visible` escapes what is not printed as itself (control
characters, ANSI sequences, bidirectional controls, what has no width), and nothing is read as markup.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from greylist_proxy.log import json_line

GAP = 2  # blanks between two columns
INDENT = "  "  # of what is stacked below
NARROWEST = 8  # a folded column is no narrower
TIME_WIDTH = 12  # of a time that is broken after its date

# Printable by Unicode's categories, and yet nothing to see: fillers, blanks, joiners, variation selectors.
INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)

STYLES = {
    "allow": "green",
    "defer": "yellow",
    "block": "red",
    "known": "green",
    "pending": "yellow",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `least` is how narrow it may be made by folding its text, None: never. With `breaks` the text has one place to
    be broken at, so that widths between the two are worth nothing. Columns with the same `stack` are put one upon the
    other where the table is too wide. `coloured`: its first word has a style in `STYLES`. `right`: of numbers.
    """

    heading: str
    stack: int
    least: int | None = None
    breaks: bool = False
    coloured: bool = False
    right: bool = False


def visible(text: str) -> str:
    r"""Return the text with everything that is not shown as itself escaped, as in `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() and char not in INVISIBLE else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def local_time(seconds: float | None) -> str:
    """Return a time for people, local and with its zone; "" for None."""
    if seconds is None:
        return ""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"  # a clock that was wrong by thousands of years


def span(seconds: float) -> str:
    """Return a duration in its largest unit of which there are two at least: `90s`, `3h`, `35d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def complain(sentence: str) -> None:
    """Say a sentence on stderr."""
    print(f"greylist-proxy: {visible(sentence)}", file=sys.stderr)


def remark(sentence: str) -> None:
    """Say on stderr what is no result: how many there are, that there are none."""
    print(visible(sentence), file=sys.stderr)


def show_json(value: Mapping[str, object]) -> None:
    """Write one object on one line."""
    print(json_line(value))


def terminal() -> Console:
    """Return what results are written to."""
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False)


def show_fields(fields: Sequence[tuple[str, str]], title: str = "") -> None:
    """Show names and values, one a line, below a title; what has no value is left out."""
    console = terminal()
    width = max(cell_len(name) for name, _ignored in fields)
    if title:
        console.print(Text(title, "bold"), soft_wrap=True)
    for name, value in fields:
        if value:
            line = Text.assemble((name.ljust(width + GAP), "dim"), _styled(visible(value)))
            console.print(Text(INDENT if title else "") + line, soft_wrap=True)


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Show rows of a cell for each column."""
    console = terminal()
    cells = [[visible(cell) for cell in row] for row in rows]
    table = arrange(columns, cells, console.width) if console.is_terminal else None
    if table is not None:
        console.print(table)
        return
    headings = [column.heading for column in columns]
    widths = [max(map(cell_len, texts)) for texts in zip(headings, *cells, strict=True)]
    for row in [headings, *cells]:
        padded = (_padded(cell, width, column) for cell, width, column in zip(row, widths, columns, strict=True))
        print((" " * GAP).join(padded).rstrip())


def _padded(cell: str, width: int, column: Column) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if column.right else cell + blanks


def arrange(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table | None:
    """Lay a table out for a terminal of this width; None: no table fits."""
    groups = [[index] for index in range(len(columns))]
    stacks = [
        [index for index, column in enumerate(columns) if column.stack == stack]
        for stack in dict.fromkeys(column.stack for column in columns)
    ]
    naturals = [
        max(cell_len(text) for text in (column.heading, *(row[index] for row in rows)))
        for index, column in enumerate(columns)
    ]
    for chosen, tight in ((groups, False), (stacks, False), (stacks, True)):
        widths = _widths([_measure(columns, naturals, group, tight=tight) for group in chosen], width)
        if widths is not None:
            return _table(columns, rows, chosen, widths)
    return None


@dataclass(slots=True)
class _Width:
    natural: int
    least: int
    breaks: bool


def _measure(columns: Sequence[Column], naturals: Sequence[int], group: Sequence[int], *, tight: bool) -> _Width:
    wishes = []
    for place, index in enumerate(group):
        indent = len(INDENT) if place else 0
        # Stacked times are broken last: four lines where there could be two.
        least = NARROWEST if tight else None if columns[index].breaks and len(group) > 1 else columns[index].least
        natural = naturals[index]
        wishes.append((natural + indent, min(natural, natural if least is None else least) + indent))
    breaks = columns[group[0]].breaks and len(group) == 1
    return _Width(max(natural for natural, _ignored in wishes), max(least for _ignored, least in wishes), breaks)


def _widths(wishes: Sequence[_Width], available: int) -> list[int] | None:
    """Give each column its width: what breaks is broken first, then the widest is made narrower, step by step."""
    widths = [wish.natural for wish in wishes]
    excess = sum(widths) + GAP * (len(widths) - 1) - available
    if excess > 0:
        widths = [wish.least if wish.breaks else wish.natural for wish in wishes]
        excess = sum(widths) + GAP * (len(widths) - 1) - available
    while excess > 0:
        foldable = [index for index, wish in enumerate(wishes) if widths[index] > wish.least and not wish.breaks]
        if not foldable:
            return None
        widest = max(foldable, key=widths.__getitem__)
        widths[widest] -= 1
        excess -= 1
    return widths


def _table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], groups: Sequence[Sequence[int]], widths: Sequence[int]
) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    height = max(map(len, groups))
    for group, width in zip(groups, widths, strict=True):
        heading = _stacked([Text(columns[index].heading) for index in group])
        heading.append("\n" * (height - len(group)))  # or it would stand at the bottom
        justify: Literal["left", "right"] = "right" if columns[group[0]].right else "left"
        table.add_column(heading, width=width, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*(_stacked([_cell(columns[index], row[index]) for index in group]) for group in groups))
    return table


def _stacked(texts: Sequence[Text]) -> Text:
    return Text(f"\n{INDENT}").join(texts)


def _cell(column: Column, text: str) -> Text:
    return _styled(text) if column.coloured else Text(text)


def _styled(text: str) -> Text:
    styled = Text(text)
    word = text.partition(",")[0]
    styled.stylize(STYLES.get(word, ""), 0, len(word))
    return styled
