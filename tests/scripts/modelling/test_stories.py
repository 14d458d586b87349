"""Stories are read out of plain text books."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.modelling.stories import clean, hold_out, read_stories, split_stories

TALE = "There was once a fox, and he lived in a wood. " * 20


def test_a_heading_begins_a_story_and_what_is_not_a_story_is_dropped() -> None:
    book = f"PREFACE\n\n{TALE}\n\nThe Fox\n\n{TALE}\n\nThe Wolf\n\n{TALE}\n\nShort\n\nA tale."
    assert split_stories(book) == [TALE.strip(), TALE.strip()]


def test_a_paragraph_is_on_one_line_with_typographic_punctuation() -> None:
    assert clean('"Who\nare *you*?"[1]--he said') == "“Who are you?”—he said"


def test_a_stretch_in_thirty_is_held_out() -> None:
    stories = ["\n\n".join("x" * 1000 for _ in range(100)) for _ in range(10)]
    training, held_out = hold_out(stories)
    sizes = [sum(map(len, documents)) for documents in (training, held_out)]
    assert 20 < sizes[0] / sizes[1] < 40


def test_a_folder_without_a_story_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no story found"):
        read_stories(tmp_path)
