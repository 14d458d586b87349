"""Measurements in this process, with small sizes and models that are made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import command as bench
from scripts.bench.job import QUICK
from workers.machine.cores import read_machine

Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made_models")


@pytest.fixture
def measure(made_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Measure:
    """Runs measurements, which must succeed; returns their figures as JSON values."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        command = ["--quick", "--models", made_models, *arguments]
        options = bench.parse_arguments(list(map(str, command)))
        job = bench.make_job(options, read_machine(), tmp_path)
        figures, failed = bench.measure(options.figures, job)
        out = capsys.readouterr().out
        assert not failed, out
        check_figures(figures, out)
        return figures

    return run


def check_figures(figures: dict[str, Any], out: str) -> None:
    """Each is printed, and has a value for each run."""
    for figure in figures.values():
        assert figure["title"] in out
        for series in figure["series"]:
            assert len(series["values"]) == QUICK.runs


def values_of(figure: dict[str, Any], name: str) -> list[float]:
    (values,) = (series["values"] for series in figure["series"] if series["name"] == name)
    return list(values)
