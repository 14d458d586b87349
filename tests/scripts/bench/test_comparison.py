"""The comparison with llama-server, on a stand-in for it. How fast something is is not tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench.comparison import leave_once, run_load, stall_once
from scripts.bench.job import QUICK
from scripts.bench.targets import RandomRequests, llama_target
from scripts.load.errors import MeasurementError
from scripts.load.target import Target
from tests.helpers.llama_stand_in import PACE_S, PROMPT_S, stand_in, write_program
from tests.scripts.bench.conftest import Measure, values_of

SIZES = QUICK.llama


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """The stand-in, in this process."""
    with stand_in() as url:
        yield llama_target(url)


def test_both_servers_are_measured_in_pairs(measure: Measure, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    program = tmp_path / "llama-server"
    write_program(program)
    names = ["llama", "llama-deep", "llama-small", "stall", "leave", "chats"]
    figures = measure(*names, "--llama-server", program)
    assert list(figures) == names
    for streams in ("1 stream", "2 streams"):
        a, b = (
            values_of(figures["llama"], f"{streams}: {server}")
            for server in ("A, llama-server", "B, tokenflume")
        )
        ratio = [ours / theirs for ours, theirs in zip(b, a, strict=True)]
        assert values_of(figures["llama"], f"{streams}: B/A") == ratio
    requests = QUICK.runs * sum(SIZES.streams) * SIZES.requests
    assert figures["llama"]["tokens"] == 2 * requests * SIZES.tokens
    assert min(values_of(figures["chats"], "processed / new: B, tokenflume")) > 0
    deep = QUICK.runs * SIZES.deep_streams * 2 * SIZES.tokens
    assert figures["llama-deep"]["tokens"] == 2 * deep
    assert min(values_of(figures["stall"], "first token: B/A")) > 0


def test_a_load_has_all_requests_of_all_streams(target: Target) -> None:
    load = run_load(target, RandomRequests(1), replace(SIZES, tokens=4, requests=3), streams=2)
    assert [len(times) for times in load.arrivals] == 6 * [4]


def test_a_stall_is_the_longest_pause_until_the_prompt_is_processed(target: Target) -> None:
    stall = stall_once(target, RandomRequests(1), SIZES)
    assert PACE_S * 1000 <= stall.pause_ms <= 1000
    assert stall.first_ms >= PROMPT_S * 1000
    assert stall.tokens >= 3 * 10 + 8


def test_streams_that_end_before_the_long_prompt_are_an_error(target: Target) -> None:
    with pytest.raises(MeasurementError, match="over before the long prompt's answer"):
        stall_once(target, RandomRequests(1), replace(SIZES, long_context=22))


def test_a_slot_is_free_at_once_if_no_request_is_in_the_way(target: Target) -> None:
    assert leave_once(target, RandomRequests(1), replace(SIZES, leave_s=0.01)) < 1000


def test_a_prompt_that_is_processed_before_its_client_disconnects_is_an_error(
    target: Target,
) -> None:
    with pytest.raises(MeasurementError, match="it needs more words"):
        leave_once(target, RandomRequests(1), replace(SIZES, leave_s=0.5))
