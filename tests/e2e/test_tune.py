"""`tokenflume tune` and `--config`, as a user runs them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.running import RunningServer, run_to_its_end


def tokenflume(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_tune_measures_the_bundled_model_and_writes_a_file_to_serve_with(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"

    ended = tokenflume("tune", "--seconds", "2", "-n", "512", "--write-config", str(path))

    assert (ended.returncode, ended.stderr) == (0, "")
    for word in ("Memory", "Measured", "Expected", "Options", "Serve"):
        assert f"\n{word}" in ended.stdout
    assert "16 streams  █" in ended.stdout
    assert "\x1b" not in ended.stdout
    written = tomllib.loads(path.read_text())
    assert written["num-ctx-tokens"] == 512
    assert 1 <= written["slots"] <= 16
    with RunningServer("--config", str(path)) as running:
        assert running.post(prompt="Once", num_predict=2).status_code == 200
        assert running.client.get("/ready").json()["models"][0]["context"] == 512


def test_what_is_printed_as_a_file_serves_the_same(tmp_path: Path) -> None:
    first = tmp_path / "first.toml"
    first.write_text('engine = "echo"\nslots = 3\nnum-ctx-tokens = 99\nport = 0\n')
    printed = run_to_its_end("--config", str(first), "--print-config", TOKENFLUME_QUEUE="5")
    assert (printed.returncode, printed.stderr) == (0, "")
    second = tmp_path / "second.toml"
    second.write_text(printed.stdout)

    again = run_to_its_end("--config", str(second), "--print-config")

    assert tomllib.loads(again.stdout) == tomllib.loads(printed.stdout)
    with RunningServer("--config", str(second)) as running:
        (model,) = running.client.get("/ready").json()["models"]
        assert (model["context"], model["slots"]) == (99, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--seconds", "0"], 2, "--seconds must be a number ≥ 1 and ≤ 3600"),
        (["--seconds", "soon"], 2, "--seconds must be a number ≥ 1 and ≤ 3600"),
        (["-m", "a=1", "-m", "b=2"], 3, "tune measures one model: give one -m"),
        (["--models-dir", "."], 3, "tune measures one model: give one -m"),
        (["-m", "none.gguf"], 3, "none.gguf cannot be read: no such file or directory"),
        (["-n", "2000000", "--slots", "256"], 3, "MiB are free"),
        (["--write-config", "/none/tuned.toml"], 3, "/none/tuned.toml cannot be written"),
        (["--write-config", "/"], 3, "/ cannot be written"),
        (["--speed"], 2, "unrecognized arguments: --speed"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence_and_a_status(
    arguments: list[str], status: int, said: str
) -> None:
    ended = tokenflume("tune", *arguments)

    assert ended.returncode == status
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_it_and_its_workers() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "tune"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while "worker processes" not in process.stdout.readline():
            pass
        started = psutil.Process(process.pid)
        deadline = time.monotonic() + 20
        while not (workers := started.children()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert psutil.wait_procs(workers, timeout=5)[1] == []


def test_its_help_tells_of_the_options_that_matter() -> None:
    ended = tokenflume("tune", "--help")

    assert ended.returncode == 0
    for word in ("--seconds", "--write-config", "--max-stall", "--model", "exit status"):
        assert word in ended.stdout
    assert "--cors-origin" not in ended.stdout
