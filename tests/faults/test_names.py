"""Names of files that are not UTF-8 or cannot be shown, and a C locale."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.helpers.running import RunningServer, run_to_its_end

LOCALES = [
    {},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"},
]
NOT_UTF8 = os.fsdecode(b"m\xfcller.gguf")


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_fault_53_a_name_beyond_ascii_is_served_in_each_locale(
    llama_gguf: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    """Under a C locale such a name gave tracebacks, a 503 for ever, and lists of status 500."""
    model = tmp_path / "müller-語.gguf"
    shutil.copyfile(llama_gguf, model)
    with RunningServer("-m", str(model), "--workers", "1", "-n", "64", **locale) as server:
        assert server.post(prompt="x", num_predict=2).status_code == 200
        check_that_all_is_whole(server, ["müller-語"])


@pytest.mark.parametrize("locale", LOCALES[2:], ids=str)
def test_fault_53_a_folder_with_odd_names_is_served_and_said(
    llama_gguf: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    for name in ("sound.gguf", "müller.gguf", NOT_UTF8, "line\n.gguf", "esc\x1b[31m.gguf"):
        shutil.copyfile(llama_gguf, tmp_path / name)
    flags = ("--models-dir", str(tmp_path), "--workers", "1", "-n", "64")
    with RunningServer(*flags, "--log-format", "json", **locale) as server:
        for name in ("sound", "müller"):
            assert server.post(model=name, prompt="x", num_predict=2).status_code == 200
        check_that_all_is_whole(server, ["müller", "sound"])
        said = [json.loads(line)["message"] for line in server.log]
        assert len([line for line in said if "its name has control characters" in line]) == 3


def check_that_all_is_whole(server: RunningServer, names: list[str]) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    assert sorted(model["id"] for model in listed) == names
    for path in ("/api/tags", "/metrics", "/ready", "/health"):
        assert server.client.get(path).status_code == 200, path
    assert not any("Traceback" in line for line in server.log)


def test_fault_53_a_model_whose_path_is_not_utf8_is_refused_in_a_sentence(
    llama_gguf: Path, tmp_path: Path
) -> None:
    shutil.copyfile(llama_gguf, tmp_path / NOT_UTF8)
    ended = run_to_its_end("-m", str(tmp_path / NOT_UTF8))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert line.endswith("m\\xfcller.gguf is not UTF-8: rename the file")
