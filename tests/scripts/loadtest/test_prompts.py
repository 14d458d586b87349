"""Files of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.loadtest.lengths import BadPlan, Fixed
from scripts.loadtest.plan import Plan
from scripts.loadtest.prompts import Entry, FilePrompts, read_prompts


def test_prompts_are_read_from_lines_and_from_objects(tmp_path: Path) -> None:
    text, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("Once upon\n\n{a time}\n")
    assert read_prompts(text) == [Entry("Once upon"), Entry("{a time}")]
    messages = [{"role": "user", "content": "Hi"}]
    lines = [{"prompt": "Once", "max_tokens": 7}, {"messages": messages}]
    objects.write_text("\n".join(map(json.dumps, lines)))
    entries = read_prompts(objects)
    assert entries == [Entry("Once", tokens=7), Entry("", tuple(messages))]
    requests = [Plan(FilePrompts(entries, Fixed(5)), "1").request(index) for index in range(3)]
    assert [request.tokens for request in requests] == [7, 5, 7]
    assert requests[1].messages == tuple(messages)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1: is not JSON"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ('{"prompt": ""}', "prompt must be a string that is not empty"),
        ('{"messages": [{"role": "user"}]}', "messages must be a list, not empty"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be an integer from 1"),
        ("", "has no prompts"),
    ],
)
def test_a_bad_file_of_prompts_is_refused_with_its_line(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(BadPlan, match=complaint):
        read_prompts(path)
