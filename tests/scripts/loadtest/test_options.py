"""The command line: bad options are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.loadtest import command as loadtest


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["127.0.0.1:80"], "must be like http://HOST:PORT"),
        (["http://h", "--streams", "0"], "each must be an integer from 1"),
        (["http://h", "--rates", "1,0"], "must be a number > 0"),
        (["http://h", "--rate", "1", "--streams", "2"], "not allowed with"),
        (["http://h", "--duration", "-1"], "must be a number > 0"),
        (["http://h", "--cancel", "1.5"], "must be a number from 0 to 1"),
        (["http://h", "--tokens", "many"], "is not a length"),
        (["http://h", "--fields", "[]"], "must be a JSON object"),
        (["http://h", "--dialect", "french"], "invalid choice"),
        (["http://h", "--prompts", "no-such-file"], "no-such-file cannot be read"),
        (["http://h", "--compare-model", "a"], "need --compare"),
        (["http://h", "--api-key", "a\nb"], "printable ASCII"),
        (
            ["http://h", "--json", "no/such/folder/x.json"],
            "the folder no/such/folder does not exist",
        ),
    ],
)
def test_bad_options_are_refused_with_their_range(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        loadtest.main(options)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_messages_are_refused_where_the_dialect_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    with pytest.raises(SystemExit):
        loadtest.main(["http://h", "--prompts", str(path)])
    assert "these do: openai-chat, ollama-chat" in capsys.readouterr().err
