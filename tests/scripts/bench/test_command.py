"""The bench runs, and its figures are complete. How fast something is is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import command as bench
from scripts.bench.job import QUICK
from tests.scripts.bench.conftest import Measure, check_figures, values_of
from workers.machine.cores import read_machine


def test_the_command_measures_the_front_and_the_latency_with_the_echo_engine(
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "scripts.bench", "--quick", "--json", str(report)]
    done = subprocess.run(
        [*command, "front", "latency"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(report.read_bytes())["figures"]
    check_figures(figures, done.stdout)
    front, latency = figures["front"], figures["latency"]
    assert front["tokens"] == QUICK.runs * QUICK.front_streams * QUICK.front_tokens
    assert min(values_of(front, "received by all clients")) > 0
    assert min(values_of(front, "sent together")) >= 1
    assert latency["tokens"] == 2 * QUICK.runs * QUICK.latency_streams * QUICK.latency_tokens
    for streams in ("one stream", f"{QUICK.latency_streams} streams"):
        assert min(values_of(latency, f"{streams}: pace")) > 0
        slow = values_of(latency, f"{streams}: 99th percentile")
        usual = values_of(latency, f"{streams}: median")
        assert all(s >= u > 0 for s, u in zip(slow, usual, strict=True))


def test_ctransformers_is_measured_with_and_without_the_server(
    measure: Measure, made_models: Path
) -> None:
    figures = measure("ctransformers", "-t", "1")
    own, served, ratio = (series["values"] for series in figures["ctransformers"]["series"])
    assert min(own) > 0
    assert ratio == [b / a for a, b in zip(own, served, strict=True)]
    assert (made_models / "tiny-Q4_0.gguf").exists()


def test_a_step_is_taken_apart_into_the_parts_of_llama_cpp_and_ours(measure: Measure) -> None:
    pytest.importorskip("llama_cpp")
    figures = measure("step", "engine")
    for part in ("llama.cpp decodes", "llama.cpp samples", "our Python"):
        assert min(values_of(figures["step"], part)) > 0
    for kind in ("our settings", "flash attention", "one cache for all"):
        assert min(values_of(figures["engine"], f"10 deep, 2 sequences: {kind}")) > 0


def test_prompts_that_are_processed_again_are_measured(measure: Measure) -> None:
    pytest.importorskip("llama_cpp")
    figures = measure("again", "new")
    again = figures["again"]
    first, second = values_of(again, "the first time"), values_of(again, "again")
    assert values_of(again, "again, over the first") == [
        b / a for a, b in zip(first, second, strict=True)
    ]
    assert min(values_of(figures["new"], "B/A")) > 0


@pytest.mark.parametrize(
    ("arguments", "failed", "complaint"),
    [
        (["ctransformers", "-t", "1"], True, "no-such.gguf cannot be read"),
        (["stall"], False, "stall: skipped: needs --llama-server PATH"),
        (["leave", "--llama-server", "no-such-program"], True, "cannot be run: No such file"),
    ],
)
def test_what_cannot_be_measured_is_reported_with_the_reason(
    arguments: list[str],
    failed: bool,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = bench.parse_arguments(["--quick", "-m", "no-such.gguf", *arguments])
    job = bench.make_job(options, read_machine(), tmp_path)
    assert bench.measure(options.figures, job) == ({}, failed)
    assert complaint in capsys.readouterr().out


def test_the_command_fails_if_a_measurement_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench", "--quick", "-m", str(tmp_path / "no.gguf")]
    server = ["leave", "--llama-server", str(tmp_path / "llama-server")]
    done = subprocess.run(
        [*command, *server], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"{tmp_path / 'llama-server'} cannot be run: No such file" in done.stdout


def test_an_unknown_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(["speed"])
    assert caught.value.code == 2
    assert "unknown figure speed" in capsys.readouterr().err
