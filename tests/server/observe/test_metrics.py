"""What is counted of a request's record, and how it reads in the log."""

from __future__ import annotations

import builtins
import io
import math
import os
import threading
from typing import Any, cast

import pytest

from server.generation.record import RequestRecord
from server.generation.submission import Submission
from server.generation.task import Generation
from server.http.errors import DeadlineExceeded, Unauthorized
from server.observe.metrics import GAPS, Metrics
from server.observe.request_log import fields_of, sentence
from shared.errors import (
    ContextTooShort,
    EngineFailed,
    InvalidRequest,
    ModelUnavailable,
    NotReady,
    QueueFull,
    ServingError,
    WorkerDied,
)
from shared.histogram import Histogram
from shared.messages import Finished, Generate
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Timings, Usage
from tests.helpers.scrape import Scrape, parse
from tests.helpers.support import run
from workers.pool.catalog import LoadedModels
from workers.pool.pool import WorkerPool
from workers.pool.stream import RequestStream


def scope(path: str = "/stream", **more: Any) -> dict[str, Any]:
    return {
        "type": "http", "path": path, "headers": [], "client": ("10.0.0.1", 5), "request_id": "id",
        **more,
    }  # fmt: skip


class Prepared:
    """Stands in for a pool: gives streams that a test fills."""

    def __init__(self) -> None:
        self.streams: list[RequestStream] = []

    def submit(self, prompt: Prompt, sampling: SamplingParams, *_: Any, **__: Any) -> RequestStream:
        stream = RequestStream(Generate(len(self.streams), prompt, sampling))
        self.streams.append(stream)
        return stream


def submitted(tasks: int = 1) -> tuple[RequestRecord, list[RequestStream], Histogram]:
    """A request whose tasks have slots in the workers 0, 1, …"""
    record, pool, gaps = RequestRecord(scope()), Prepared(), Histogram(GAPS)
    generation = Generation(Prompt("secret"), SamplingParams())
    submission = Submission([generation] * tasks, cast("WorkerPool", pool), "")
    record.read, record.model = record.arrived, "tales"
    record.submits(submission, gaps)
    submission.begin()
    for index, stream in enumerate(pool.streams):
        stream.dispatched(index)
    return record, pool.streams, gaps


def finish(stream: RequestStream, tokens: int, reason: Any = "stop") -> None:
    end = Finished(stream.request.id, reason, Usage(7, 3, tokens), Timings(0.5, 2.0))
    stream.put(end)


def counted(*records: RequestRecord) -> Scrape:
    metrics = Metrics(LoadedModels([]), ["/stream"])
    for record in records:
        record.end()
        metrics.ended(record)
    return parse(run(metrics.text(""))[0].decode())


@pytest.mark.parametrize(
    ("error", "early", "late"),
    [
        (InvalidRequest("x"), "refused", "refused"),
        (ContextTooShort("x"), "refused", "refused"),
        (Unauthorized("x"), "refused", "refused"),
        (QueueFull("x"), "refused", "refused"),
        (NotReady("x"), "refused", "failed"),
        (ModelUnavailable("x"), "failed", "failed"),
        (DeadlineExceeded("x"), "failed", "failed"),
        (EngineFailed("x"), "failed", "failed"),
        (WorkerDied("x"), "failed", "failed"),
        (ServingError("x"), "failed", "failed"),
    ],
)
def test_an_error_is_a_refusal_or_a_failure(error: ServingError, early: str, late: str) -> None:
    """A server that ends turns requests away, but fails those that it had begun with."""
    first, (second, _, _) = RequestRecord(scope()), submitted()
    first.error = second.error = error
    assert (first.outcome, second.outcome) == (early, late)
    assert first.reason == second.reason == error.code


def test_a_client_that_left_counts_as_such_whatever_else_happened() -> None:
    record, (stream,), _ = submitted()
    finish(stream, 3)
    record.has_left = True
    assert (record.outcome, record.reason) == ("cancelled", "client_left")


def test_a_request_whose_tasks_end_differently_ended_by_length() -> None:
    record, streams, _ = submitted(2)
    finish(streams[0], 3)
    assert (record.outcome, record.reason) == ("finished", "stop")
    finish(streams[1], 4, "length")
    assert (record.outcome, record.reason) == ("finished", "length")
    assert record.usage == Usage(14, 6, 7)
    assert record.workers == [0, 1]


def test_there_is_a_gap_between_each_two_tokens_of_a_task() -> None:
    record, _, gaps = submitted(2)
    for index, count in ((0, 3), (1, 1), (0, 2), (1, 4), (0, 1)):
        record.tokens(index, count)
    assert sum(gaps.counts) == (3 + 2 + 1 - 1) + (1 + 4 - 1)
    assert 0 < gaps.total < 1
    assert record.first_token is not None
    assert record.usage.completion_tokens == 11  # nothing has ended: what was sent counts


def test_the_rate_is_the_workers_own_where_it_is_known() -> None:
    record, (stream,), _ = submitted()
    record.tokens(0, 5)
    record.end()
    assert record.tokens_per_s is not None  # by when they were sent
    finish(stream, 5)
    assert record.tokens_per_s == 4 / 2.0


def test_paths_that_nobody_serves_are_one() -> None:
    refused = [RequestRecord(scope(path)) for path in ("/a", "/b", "/stream")]
    for record in refused:
        record.error = Unauthorized("x")
    found = counted(*refused)
    assert found.requests(path="other", reason="unauthorized", model_name="") == 2
    assert found.requests(path="/stream") == 1
    assert found.labels("tokenflume_requests_total", "path") == {"other", "/stream"}


def test_the_figures_of_finished_requests_are_their_models() -> None:
    record, (stream,), _ = submitted()
    record.tokens(0, 2)
    finish(stream, 2)
    found = counted(record)
    for name, value in (
        ("time_to_first_token_seconds_count", 1),
        ("request_queue_time_seconds_count", 1),
        ("e2e_request_latency_seconds_count", 1),
        ("request_prefill_time_seconds_sum", 0.5),
        ("request_decode_time_seconds_sum", 2.0),
        ("request_prompt_tokens_sum", 7),
        ("request_generation_tokens_sum", 2),
    ):
        assert found.sum(f"tokenflume_{name}", model_name="tales") == value


def test_names_and_labels_follow_the_rules_of_prometheus() -> None:
    record, (stream,), _ = submitted()
    record.model = 'a "quoted"\nname\\'
    finish(stream, 1)
    found = counted(record)
    assert found.requests(model_name=record.model) == 1
    for name, kind in found.types.items():
        assert name.startswith(("tokenflume_", "process_"))
        assert (kind == "counter") == name.endswith("_total")
    assert all(math.isfinite(value) for value in found.samples.values())


def test_a_path_cannot_write_lines_of_its_own_into_the_log() -> None:
    record = RequestRecord(scope("/x\n2026-01-01 ERROR fake", api_key_owner="alice"))
    record.error = InvalidRequest("x")
    line = sentence(fields_of(record))
    assert "\n" not in line
    assert line.startswith("id of alice at 10.0.0.1: /x%0A2026-01-01%20ERROR%20fake: refused (inv")


def test_a_client_without_an_address_is_logged_too() -> None:
    record = RequestRecord(scope(client=None))
    assert sentence(fields_of(record)).startswith("id of : /stream: finished (stop)")


def test_the_kernel_s_files_are_read_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The front's own figures were read on the loop, at each scrape."""
    opened: list[str] = []
    for module, name in ((builtins, "open"), (io, "open"), (os, "listdir")):
        real = getattr(module, name)

        def watched(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            opened.append(threading.current_thread().name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)
    text = run(Metrics(LoadedModels([]), []).text(""))[0].decode()
    assert "process_open_fds" in text
    assert opened
    assert "MainThread" not in opened
