"""The report and the file of options that tune writes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from server.config.specs import given_files, make_specs
from server.terminal.style import Style
from server.tune.measure import Figures, PromptFigure, StallFigure
from server.tune.report import command_text, config_text, memory_lines, report_lines
from server.tune.search import Advice, Trial, Tuned
from tests.helpers.options import read_options
from workers.engines.memory_plan import MemoryPlan
from workers.machine.cores import read_machine

PROMPT = PromptFigure(500, 612, 12.34, is_estimate=True)
FIGURES = Figures(1.0, {1: 1234.5, 4: 40.25, 8: 0.0, 16: 12.0}, PROMPT)
GIVEN: dict[str, object] = {"model": ("chat=/srv/it's.gguf",), "num_ctx_tokens": 4096}


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    options = read_options(["--engine", "echo"], {})
    specs, _ = make_specs(given_files(options), options, read_machine())
    memory = MemoryPlan(7_456_064, 7_456_064, 12_582_912, 16, 67_108_864)
    found = Tuned(memory, 24 * 10**9)
    found.trials = [Trial("2 workers, 2 threads", options, specs[0], FIGURES)]
    found.figures = FIGURES
    found.untried = ["the same, repack off: no time left"]
    found.stalls = {150.0: StallFigure(3, 0.2, 0.01, PROMPT)}
    found.advice = [
        Advice("num_threads", 2, "nothing is faster"),
        Advice("repack", "on", "off is no faster"),
        Advice("max_stall", 150.0, "a lower limit makes first tokens much slower"),
    ]
    found.busy = 0.5
    return found


def test_the_memory_is_said_in_its_parts(tuned: Tuned) -> None:
    text = "\n".join(memory_lines(tuned.memory, tuned.available, Style()))

    assert "about 275.9 MB of 24.0 GB free" in text
    assert "23.7 GB  remain free" in text
    assert "201.3 MB  KV cache: 16 streams, 12.6 MB each" in text
    assert "rearranged" in text


def test_the_report_has_the_figures_the_flags_and_the_reasons(tuned: Tuned) -> None:
    text = "\n".join(report_lines(tuned, Style(), 80))

    assert "1,234" in text
    assert "~12.3 s" in text
    assert "not tried: the same, repack off: no time left" in text
    assert "Other programs used 50% of the cores" in text
    assert "streams pause 200 ms instead of 10 ms" in text
    assert "--max-stall 150  a lower limit makes first tokens much slower" in text


@pytest.mark.parametrize("columns", [80, 100])
def test_no_line_is_wider_than_the_terminal(tuned: Tuned, columns: int) -> None:
    lines = [
        *memory_lines(tuned.memory, tuned.available, Style()),
        *report_lines(tuned, Style(), columns),
    ]

    assert [line for line in lines if len(line) > columns] == []


def test_the_file_has_what_was_given_and_what_is_advised(tuned: Tuned, tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text(config_text(tuned, GIVEN))

    options = read_options(["--config", str(path)], {})

    assert options.model == ("chat=/srv/it's.gguf",)
    assert (options.num_ctx_tokens, options.num_threads, options.repack) == (4096, 2, "on")
    assert options.max_stall == 150


def test_the_command_means_the_same_as_the_file(tuned: Tuned, tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text(config_text(tuned, GIVEN))
    program, *arguments = shlex.split(command_text(tuned, GIVEN))

    assert program == "tokenflume"
    by_flags, by_file = read_options(arguments, {}), read_options(["--config", str(path)], {})
    assert by_flags == by_file
