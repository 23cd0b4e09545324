# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialogues of tests/dialogues with the real program, each as it is written and in small pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .dialogue_client import Conversation
from .dialogue_servers import Programs, program_key
from .dialogues import Dialogue, load_all
from .peers import closing

DIALOGUES = sorted(load_all(), key=program_key)  # so that those with the same settings share a process


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """The program, with any settings."""
    with closing(Programs(lambda: tmp_path_factory.mktemp("program"))) as made:
        yield made


RUNS = [
    pytest.param(dialogue, pieces, id=f"{dialogue.name}-{'pieces' if pieces else 'whole'}")
    for dialogue in DIALOGUES
    for pieces in ([False] if dialogue.whole else [False, True])
]


@pytest.mark.parametrize(("dialogue", "pieces"), RUNS)
def test_dialogue(programs: Programs, dialogue: Dialogue, pieces: bool) -> None:
    program = programs.ready_for(dialogue)
    Conversation(dialogue, program, pieces=pieces).run()
    assert program.errors() == []
