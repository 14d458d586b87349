"""The command line of the soak test."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.soak import command as soak


def test_options_after_two_dashes_are_the_servers(tmp_path: Path) -> None:
    job = soak.parse_arguments(["--minutes", "2", "-m", "a.gguf", "--", "--slots", "3", "-m", "b"])
    assert job.load.seconds == 120
    assert job.models == ["a.gguf"]
    options = soak.server_options(job, tmp_path)
    assert options[options.index("-m") + 1] == "a.gguf"
    assert options[-8:] == ["--slots", "3", "-m", "b", "--host", "127.0.0.1", "-P", "0"]


@pytest.mark.parametrize(
    "arguments",
    [["--minutes", "0"], ["--kill-every", "-1"], ["--clients", "0"], ["-m", "x", "--models", "2"]],
)
def test_bad_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        soak.parse_arguments(arguments)
    assert exit_.value.code == 2
    assert arguments[-2] in capsys.readouterr().err
