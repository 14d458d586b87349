"""Requests that are sent together: complete answers are counted, anything else is an error."""

from __future__ import annotations

import itertools
import time

import pytest

from scripts.bench.loads import Load, longest_pause, run_in_rows, run_streams
from scripts.bench.targets import llama_target, our_target
from scripts.load.dialects import STREAMING
from scripts.load.errors import MeasurementError
from scripts.load.request import Request
from scripts.load.target import Target
from tests.helpers.canned_server import LAST_CHUNK, Parts, canned_server, chunk, head, http
from tests.helpers.llama_stand_in import PACE_S, event, stand_in

PLAIN = head(media_type="text/plain") + chunk(b"a\n\n") + chunk(b"\n") + chunk(b"\\n\\r\xc3\n")
PLAIN += LAST_CHUNK
"""Four tokens, two of them without text, in three chunks."""
DONE = b"data: [DONE]\n\n"
EVENTS = head(media_type="text/event-stream") + b"".join(
    map(chunk, (event("a"), event("b") + event("\n\n"), event("", 3), DONE))
)
EVENTS += LAST_CHUNK
"""Three tokens of llama-server."""


def events(*parts: bytes) -> bytes:
    return head(media_type="text/event-stream") + b"".join(map(chunk, parts))


def load_of_ours(answer: Parts, tokens: int) -> Load:
    with canned_server(lambda _: answer) as server:
        return run_streams(our_target(server.url), [Request("x", tokens, seed=1)])


def load_of_llama(answer: Parts, tokens: int) -> Load:
    with canned_server(lambda _: answer) as server:
        return run_in_rows(llama_target(server.url), [[Request("x", tokens, seed=1)]])


def test_a_complete_answer_is_counted() -> None:
    load = load_of_ours(PLAIN, tokens=4)
    assert (load.tokens, load.chunks, len(load.arrivals[0])) == (4, 3, 4)
    assert load_of_llama(EVENTS, tokens=3).tokens == 3


@pytest.mark.parametrize(
    ("answer", "tokens", "complaint"),
    [
        (PLAIN[:-5], 4, "cut after 4 tokens"),
        (PLAIN[:-1], 4, "cut after 4 tokens"),
        (PLAIN, 5, "4 tokens instead of 5"),
        (PLAIN, 3, "4 tokens instead of 3"),
        (PLAIN.replace(b"200 OK", b"429 Too Many Requests"), 4, "HTTP 429"),
        ((), 4, "closed before an answer"),
    ],
)
def test_anything_but_the_complete_answer_is_an_error(
    answer: Parts, tokens: int, complaint: str
) -> None:
    with pytest.raises(MeasurementError, match=complaint):
        load_of_ours(answer, tokens)


@pytest.mark.parametrize(
    ("answer", "tokens", "complaint"),
    [
        (EVENTS[:-5], 3, "cut after 3 tokens"),
        (EVENTS.replace(DONE, b"data: [none]\n\n"), 3, "not JSON: '\\[none\\]'"),
        (events(event("a"), event("", 1)) + LAST_CHUNK, 1, r"without \[DONE\] after 1 tokens"),
        (events(event("a")), 2, "cut after 1 tokens"),
        (EVENTS, 4, "3 tokens instead of 4"),
        (EVENTS, 2, "3 tokens instead of 2"),
        (events(event("a"), event("", 2), DONE) + LAST_CHUNK, 1, "1 events arrived, but usage"),
        (events(event("a"), FINISH := event("", 1).split(b', "usage"')[0] + b"}\n\n", DONE)
         + LAST_CHUNK, 1, "without a usage"),
        (events(event("a"), DONE) + LAST_CHUNK, 1, "no finish reason"),
        (events(b'data: {"error": {"code": 500}}\n\n') + LAST_CHUNK, 1, "error event"),
        (EVENTS.replace(b"200 OK", b"400 Bad Request"), 3, "HTTP 400"),
        (b"hello\r\n\r\n", 1, "is not HTTP"),
        ((), 3, "closed before an answer"),
    ],
)  # fmt: skip
def test_anything_but_the_complete_completion_is_an_error(
    answer: Parts, tokens: int, complaint: str
) -> None:
    with pytest.raises(MeasurementError, match=complaint):
        load_of_llama(answer, tokens)


def test_a_model_that_ends_early_is_an_error() -> None:
    early = event("", 1).replace(b'"length"', b'"stop"')
    with pytest.raises(MeasurementError, match="had 1 tokens, not 3"):
        load_of_llama(events(event("a"), early, DONE) + LAST_CHUNK, 3)


def test_each_client_sends_its_next_request_when_its_answer_is_complete() -> None:
    rows = [[Request(f"{row} {number}", 4, 1) for number in range(3)] for row in range(2)]
    with stand_in() as url:
        load = run_in_rows(llama_target(url), rows)
    assert [len(times) for times in load.arrivals] == 6 * [4]
    first, second, *_, last = sorted(times[0] for times in load.arrivals)
    assert second - first < PACE_S * 4 < last - first
    assert load.seconds > 3 * 4 * PACE_S


def test_in_turn_a_request_is_sent_when_the_one_before_has_its_first_token() -> None:
    requests = [Request(str(number), 2, 1) for number in range(3)]
    with stand_in() as url:
        load = run_streams(llama_target(url), requests, in_turn=True)
    firsts = [times[0] for times in load.arrivals]
    assert firsts == sorted(firsts)
    assert min(b - a for a, b in itertools.pairwise(firsts)) >= PACE_S


def test_bytes_gather_before_they_are_read() -> None:
    answer = (PLAIN[:-30], 0.01, PLAIN[-30:-10], 0.01, PLAIN[-10:])
    target_of = STREAMING["stream-plain"]
    with canned_server(lambda _: answer) as server:
        begun = time.monotonic()
        load = run_streams(Target(server.url, target_of), [Request("x", 4, 1)], gather_s=0.1)
    assert load.tokens == 4
    assert time.monotonic() - begun >= 0.1
    assert len(set(load.arrivals[0])) == 1


def test_an_answer_in_one_chunk_is_one_chunk() -> None:
    assert load_of_ours(http(b"a\n" * 9, media_type="text/plain"), 9).chunks == 1


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        ([0, 1, 2, 3, 9], 1),  # the pause after the end does not count
        ([0, 4, 5], 4),  # one that encloses all of it counts as a whole
        ([0, 2.5, 6, 20], 3.5),  # and so does one that goes on beyond the end
        ([0, 0.5], 2),  # without a token it is the whole time
    ],
)
def test_a_pause_counts_as_a_whole_if_a_part_of_it_does(times: list[float], pause: float) -> None:
    assert longest_pause(times, start=1, end=3) == pause
