# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialogues of tests/dialogues with the real program, each as it is written and in small pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .dialogue_client import Conversation
from .dialogue_servers import Program, program_key
from .dialogues import Dialogue, load_all
from .peers import closing

DIALOGUES = load_all()
FIRST = {program_key(dialogue): dialogue for dialogue in reversed(DIALOGUES)}


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program with the settings of a kind of dialogue; pytest runs all of them before the next."""
    with closing(Program(tmp_path_factory.mktemp("program"), FIRST[request.param])) as server:
        yield server


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize(
    ("program", "dialogue"),
    [(program_key(dialogue), dialogue) for dialogue in DIALOGUES],
    ids=[dialogue.name for dialogue in DIALOGUES],
    indirect=["program"],
)
def test_dialogue(program: Program, dialogue: Dialogue, pieces: bool) -> None:
    program.begin(dialogue)
    Conversation(dialogue, program, pieces=pieces).run()
    assert program.errors() == []
