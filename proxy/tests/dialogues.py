# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTP conversations as text files (tests/dialogues, whose README explains the format): reading them.

A file becomes a `Dialogue`: what it is about, what it wants set, and its steps. What is written wrong is a
`DialogueError` with file and line. `dialogue_client.py` holds the conversation, `dialogue_servers.py` has the servers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "tests/dialogues"
PROGRAM = "greylist-proxy"
TALK = frozenset({"C", "C+", "S", "ours", "has", "lacks", "B", "L"})  # steps with a text after a colon
DEEDS = frozenset({"tls", "close", "leave", "half-close", "connect", "reconnect", "again", "after", "stop"})
OWN_STEPS = frozenset({"L", "again", "stop"})  # what only this program can be asked for
PLACES = frozenset({"", "from the neighbour", "from elsewhere"})  # of a further connection
BACKEND_POINTS = frozenset({"connect", "EHLO", "MAIL", "RCPT", "DATA", "body", ".", "RSET", "QUIT"})
ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
WILD = {"...": b".*", "{word}": rb"[^ ]+"}
ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.))|\{([^{}]+)\*(\d+)\}", re.DOTALL)


class DialogueError(Exception):
    """A file is not a dialogue; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the conversation: its number in the file, what kind it is, and its text."""

    number: int
    kind: str
    text: str


@dataclass
class Dialogue:
    """One file."""

    name: str  # folder and file, without the suffix
    summary: str = ""
    rfcs: list[str] = field(default_factory=list)
    only: bool = False  # about this program, not about any SMTP server
    whole: str = ""  # why what is one packet must not be cut, where that is so
    needs: list[str] = field(default_factory=list)  # what a server must offer at EHLO to be asked this
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)  # that settings name: their lines
    backend: dict[str, list[str]] = field(default_factory=dict)  # what the server behind says at a point, in turn
    steps: list[Step] = field(default_factory=list)

    def has(self, kind: str) -> bool:
        """Tell whether there is such a step."""
        return any(step.kind == kind for step in self.steps)


def wire(text: str) -> bytes:
    r"""Return the bytes that a text stands for: \r \n \t \0 \\ \xNN are single ones, {a*100} is a hundred a's."""
    data = b""
    end = 0
    for match in ESCAPE.finditer(text):
        data += text[end : match.start()].encode()
        end = match.end()
        code, letter, repeated, times = match.groups()
        if repeated is not None:
            data += wire(repeated) * int(times)
        elif code is not None:
            data += bytes([int(code, 16)])
        elif letter in ESCAPES:
            data += ESCAPES[letter]
        else:
            raise DialogueError(f"unknown escape \\{letter}")
    return data + text[end:].encode()


def shown(data: bytes) -> str:
    """Return bytes as a file would write them, in one line."""
    text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    escaped = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return escaped if len(escaped) <= 300 else f"{escaped[:300]} ({len(data)} bytes)"


def text_pattern(text: str) -> re.Pattern[bytes]:
    """Return what matches a whole line: `...` stands for anything, `{word}` for one word, the rest for itself."""
    parts = (WILD.get(part, re.escape(wire(part))) for part in re.split(r"(\.\.\.|\{word\})", text))
    return re.compile(b"".join(parts), re.DOTALL)


def reply_pattern(text: str) -> re.Pattern[bytes]:
    """Return what matches a reply: codes with `x` for any digit and `|` between alternatives, then a text as above.

    Without a text any will do. The enhanced code, where one is given, may have an `x` too.
    """
    codes, _ignored, rest = text.partition(" ")
    if not re.fullmatch(r"[2-5][0-9x]{2}(?:\|[2-5][0-9x]{2})*", codes):
        raise DialogueError(f"not a reply code: {codes}")
    pattern = b"(?:%b)" % codes.replace("x", r"\d").encode()
    first, blank, more = rest.partition(" ")
    if not rest:
        return re.compile(pattern + b"(?: .*)?", re.DOTALL)
    if re.fullmatch(r"[245]\.[0-9x]+\.[0-9x]+", first):
        enhanced = re.escape(first).replace("x", r"\d+").encode()
        return re.compile(pattern + b" " + enhanced + blank.encode() + text_pattern(more).pattern, re.DOTALL)
    return re.compile(pattern + b" " + text_pattern(rest).pattern, re.DOTALL)


def parse(name: str, text: str) -> Dialogue:
    """Read a file's text. DialogueError: what is wrong, with the line's number."""
    dialogue = Dialogue(name)
    lines = list(enumerate(text.splitlines(), 1))
    number = 0
    try:
        while lines and lines[0][1].strip():
            number, line = lines.pop(0)
            _take_header(dialogue, line)
        for step in _steps(lines):
            number = step.number
            _check(dialogue, step)
            dialogue.steps.append(step)
    except (DialogueError, tomllib.TOMLDecodeError) as error:
        raise DialogueError(f"{name}.txt:{number}: {error}") from error
    for problem, found in (
        ("no summary (a line that begins with #)", not dialogue.summary),
        ("no RFC, and not about this program only", not (dialogue.rfcs or dialogue.only)),
        ("nothing is expected", not dialogue.has("S") and not dialogue.has("close")),
    ):
        if found:
            raise DialogueError(f"{name}.txt: {problem}")
    return dialogue


def _take_header(dialogue: Dialogue, line: str) -> None:
    if line.startswith("#"):
        dialogue.summary = f"{dialogue.summary} {line[1:].strip()}".strip()
        return
    key, colon, value = line.partition(":")
    value = value.strip()
    if not (colon and value):
        raise DialogueError(f"not a header line: {line}")
    if key == "RFC":
        dialogue.rfcs.append(value)
    elif key == "only" and value == PROGRAM:
        dialogue.only = True
    elif key == "whole":
        dialogue.whole = value
    elif key == "needs":
        dialogue.needs += value.upper().split()
    elif key == "with" and (setting := re.fullmatch(r"\[(\w+)\] (\w+ = .+)", value)):
        dialogue.settings.setdefault(setting[1], {}).update(tomllib.loads(setting[2]))
    elif key == "file" and (content := re.fullmatch(r"(\w+) = (.*)", value)):
        dialogue.files.setdefault(content[1], []).append(content[2])
    elif key == "backend" and value.partition(" ")[0] in BACKEND_POINTS:
        point, _ignored, reply = value.partition(" ")
        dialogue.backend.setdefault(point, []).append(reply)
    else:
        raise DialogueError(f"not a header line: {line}")


def _steps(lines: list[tuple[int, str]]) -> Iterator[Step]:
    """Go through the steps, those between `N times` and `end` N times, with {n} counting from 1."""
    repeated: list[Step] | None = None
    times = 0
    for number, line in lines:
        text = line.strip() if repeated is not None else line
        if not text.strip() or text.startswith("#"):
            continue
        if match := re.fullmatch(r"(\d+) times", text):
            repeated, times = [], int(match[1])
        elif text == "end" and repeated is not None:
            for count in range(1, times + 1):
                for step in repeated:
                    yield Step(step.number, step.kind, step.text.replace("{n}", str(count)))
            repeated = None
        elif repeated is not None:
            repeated.append(_step(number, text))
        else:
            yield _step(number, text)
    if repeated is not None:
        raise DialogueError("`times` without an `end`")


def _step(number: int, line: str) -> Step:
    kind, colon, text = line.partition(":")
    if colon and kind in TALK:
        return Step(number, kind, text.removeprefix(" "))
    deed, _ignored, text = line.strip().partition(" ")
    return Step(number, deed, text) if deed in DEEDS else Step(number, line, "")


def _check(dialogue: Dialogue, step: Step) -> None:
    kind, text = step.kind, step.text
    if kind not in TALK and kind not in DEEDS:
        raise DialogueError(f"not a step: {kind}")
    if kind in OWN_STEPS and not dialogue.only:
        raise DialogueError(f"{kind} needs a header `only: {PROGRAM}`")
    if kind in ("S", "ours"):
        reply_pattern(text)
    elif kind in TALK:
        wire(text)
    elif kind == "after" and not re.fullmatch(r"\d+(?:\.\d+)?s", text):
        raise DialogueError("after what? Such as `after 1s`")
    elif kind in ("connect", "reconnect", "again") and text not in PLACES:
        raise DialogueError(f"{kind} {text}: from where?")


def load(path: Path) -> Dialogue:
    """Read one file. DialogueError: see `parse`."""
    return parse(f"{path.parent.name}/{path.stem}", path.read_text(encoding="utf-8"))


def load_all(folder: Path = FOLDER) -> list[Dialogue]:
    """Read all, in the order of their names."""
    return [load(path) for path in sorted(folder.glob("*/*.txt"))]
