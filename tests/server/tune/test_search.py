"""What tune tries and keeps, on the echo engine and on the bundled model, in real workers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.config.specs import given_files
from server.tune.measure import Figures, Gauge, PromptFigure, fastest, ready_pool
from server.tune.search import Tuned, Tuner, check_memory, score
from shared.errors import ConfigurationError
from tests.helpers.options import read_options
from tests.helpers.support import echo_options, model_settings, pool_settings, run, until
from workers.machine.cores import Core, Machine, read_machine


def figures(rate: float, prompt_s: float, load_s: float = 1.0) -> Figures:
    return Figures(load_s, {1: rate, 8: 4 * rate}, PromptFigure(500, 600, prompt_s))


def tuner(
    *arguments: str,
    given: tuple[str, ...] = (),
    seconds: float = 1.0,
    machine: Machine | None = None,
) -> Tuner:
    options = read_options(["--log-level", "error", *arguments], {})
    (file,) = given_files(options)
    return Tuner(file, options, given, machine or read_machine(), seconds, lambda _: None)


def echo(folder: Path, **options: Any) -> tuple[str, ...]:
    path = echo_options(folder, step_s=0.002, **options)
    return ("--engine", "echo", "-m", str(path), "--num-threads", "1")


def test_a_score_is_the_geometric_mean_of_all_ratios() -> None:
    before = figures(10, 1.0)

    assert score(before, before) == 1
    assert score(figures(20, 0.5), before) == pytest.approx(2)
    assert score(figures(20, 1.0), before) == pytest.approx(math.cbrt(4))
    assert score(figures(5, 1.0), before) < 1


def test_a_rate_that_could_not_be_measured_is_left_out_of_the_score() -> None:
    assert score(figures(0, 0.5), figures(10, 1.0)) == pytest.approx(2)


def test_of_two_measurements_the_faster_figures_count() -> None:
    both = fastest(figures(10, 1.0, 3.0), figures(20, 2.0, 2.0))

    assert both == figures(20, 1.0, 2.0)


def test_streams_a_prompt_and_stalls_are_measured_in_a_real_pool(tmp_path: Path) -> None:
    model = model_settings(path=echo_options(tmp_path, step_s=0.002), context=4096, slots=4)

    async def measure() -> None:
        async with ready_pool(pool_settings(model)) as (pool, load_s):
            gauge = Gauge(pool, 0.1)
            found = await gauge.figures(load_s, (1, 4, 8))
            assert found.load_s > 0
            assert 0 < found.rates[1] < found.rates[4]
            assert found.prompt.words == 500
            assert found.prompt.tokens > 500
            assert found.prompt.seconds > 0
            stall = await gauge.stall()
            assert stall.streams == 3
            assert stall.stall_s > 0 < stall.usual_s
            assert stall.prompt.words == 500
            await until(lambda: pool.status().active == 0)

    run(measure())


def test_a_prompt_is_as_long_as_the_context_allows(tmp_path: Path) -> None:
    model = model_settings(path=echo_options(tmp_path), context=512, slots=1)

    async def measure() -> PromptFigure:
        async with ready_pool(pool_settings(model)) as (pool, _):
            return await Gauge(pool, 0.1).prompt()

    found = run(measure())
    assert 40 < found.words < 500
    assert found.tokens < 512


def test_a_model_that_cannot_be_loaded_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")

    async def measure() -> None:
        async with ready_pool(pool_settings(model_settings(path=path))):
            pass

    with pytest.raises(ConfigurationError, match=r"broken\.json"):
        run(measure())


def test_a_request_that_fails_ends_the_measurement_with_its_reason(tmp_path: Path) -> None:
    model = model_settings(path=echo_options(tmp_path), context=40, slots=1)

    async def measure() -> None:
        async with ready_pool(pool_settings(model)) as (pool, _):
            await Gauge(pool, 0.1).prompt()

    with pytest.raises(ConfigurationError, match=r"a request failed: .*the context holds 40"):
        run(measure())


def test_what_is_given_stays_as_it_is_and_gets_no_advice(tmp_path: Path) -> None:
    found = run(tuner(*echo(tmp_path), given=("num_threads", "workers", "slots")).run())

    assert len(found.trials) == 1
    assert not {item.option for item in found.advice} & {"num_threads", "workers", "slots"}
    assert found.figures is not None
    assert set(found.figures.rates) == {1, 4, 8, 16}


def test_slots_are_advised_by_the_rates(tmp_path: Path) -> None:
    found = run(tuner(*echo(tmp_path), given=("num_threads", "workers")).run())

    (slots,) = [item for item in found.advice if item.option == "slots"]
    assert 1 <= slots.value <= 16
    assert "streams" in slots.reason


FOUR_CORES = Machine(
    tuple(Core((cpu, cpu + 4), 0, 0, 0, 0) for cpu in range(4)), 8, 8, None, "no cgroup found"
)


@pytest.mark.parametrize(
    ("arguments", "given", "alternatives"),
    [
        ((), (), [(4, 2), (8, 1), (2, 1)]),
        ((), ("workers",), [(8, 1), (2, 1)]),
        ((), ("num_threads",), [(4, 2)]),
        ((), ("num_threads", "workers"), []),
    ],
)
def test_other_threads_and_workers_are_tried_unless_they_are_given(
    arguments: tuple[str, ...], given: tuple[str, ...], alternatives: list[tuple[int, int]]
) -> None:
    """Four cores of two CPUs each: a worker of four threads is what they suggest."""
    made = tuner("--engine", "echo", *arguments, given=given, machine=FOUR_CORES)

    assert made._alternatives(4, 1) == alternatives


def test_a_model_that_does_not_fit_is_refused_with_the_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.tune.search.available_memory", lambda: 100 * 2**20)

    with pytest.raises(ConfigurationError) as refused:
        tuner("--slots", "16")

    said = str(refused.value)
    assert said.startswith("fairy-tales does not fit: it takes about ")
    assert "192 of KV cache for 16 streams" in said
    assert "100 MiB are free" in said


def test_where_memory_is_unknown_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.tune.search.available_memory", lambda: None)

    assert tuner("--slots", "16").available is None


def test_what_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tuner(*echo(tmp_path), seconds=60)
    monkeypatch.setattr("server.tune.search.available_memory", lambda: 1)

    assert "does not fit" in made._why_not(made._best_options)


def test_the_given_options_are_left_as_they_were(tmp_path: Path) -> None:
    options = read_options([*echo(tmp_path), "--log-level", "error"], {})
    before = replace(options)
    (file,) = given_files(options)

    found: Tuned = run(
        Tuner(file, options, ("num_threads",), read_machine(), 1.0, lambda _: None).run()
    )

    assert options == before
    assert check_memory(found.trials[0].spec)[0] == found.memory
