"""GET /metrics of the real server: what was sent is what is counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.openmetrics import parser as openmetrics

from tests.helpers.paths import ROOT
from tests.helpers.running import RunningServer
from tests.helpers.scrape import Scrape, scrape, scrape_until
from tests.helpers.support import echo_options

DASHBOARD = ROOT / "scripts" / "grafana-dashboard.json"
ENDLESS = "x[[sleep 60]]"


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer("--engine", "echo", "--workers", "1", "-n", "300000") as running:
        yield running


def expressions_of(panel: Any) -> Iterator[str]:
    """Of a dashboard, its rows, and the panels in them; and of its variables."""
    for target in panel.get("targets", []):
        yield target["expr"]
    for inner in panel.get("panels", []):
        yield from expressions_of(inner)


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:tokenflume|process)_[a-z0-9_]+", expression))


def decode_steps(found: Scrape) -> float:
    return found.sum("tokenflume_iteration_tokens_sum", kind="decode")


def test_tokens_requests_and_times_add_up_to_what_was_sent(server: RunningServer) -> None:
    usages = [
        server.ndjson(prompt=f"{n}: {'some words ' * n}", num_predict=5 + n, ignore_eos=True)[-1][
            "usage"
        ]
        for n in range(4)
    ]
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "n": 2}
    usages.append(server.client.post("/v1/chat/completions", json=chat).json()["usage"])
    generated = sum(usage["completion_tokens"] for usage in usages)
    prompts = sum(usage["prompt_tokens"] for usage in usages[:-1]) + 2 * usages[-1]["prompt_tokens"]

    # The first token of each comes of its prompt's step, and the last one is never fed.
    found = scrape_until(server.client, lambda s: decode_steps(s) == generated - 6)
    assert found.requests() == found.requests(outcome="finished", model_name="echo") == 5
    assert found.requests(path="/stream", reason="length") == 4
    assert found.requests(path="/v1/chat/completions", reason="length") == 1
    assert found.sum("tokenflume_generation_tokens_total", model_name="echo") == generated
    assert found.sum("tokenflume_request_generation_tokens_sum") == generated
    assert found.sum("tokenflume_prompt_tokens_total", worker="0") == prompts
    assert found.sum("tokenflume_request_prompt_tokens_sum") == prompts
    cached = found.sum("tokenflume_prompt_tokens_cached_total")
    assert found.sum("tokenflume_iteration_tokens_sum", kind="prefill") == prompts - cached
    assert found.sum("tokenflume_inter_token_latency_seconds_count") == generated - 6
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert found.sum(f"tokenflume_{name}_seconds_count", model_name="echo") == 5
    assert found.sum("tokenflume_request_prefill_time_seconds_count") == 6
    total = found.sum("tokenflume_e2e_request_latency_seconds_sum")
    assert total >= found.sum("tokenflume_time_to_first_token_seconds_sum") > 0


def test_a_histogram_s_buckets_ascend_to_its_count(server: RunningServer) -> None:
    server.ndjson(prompt="words", num_predict=3)
    found = scrape_until(server.client, lambda s: decode_steps(s) > 0)
    histograms = {name for name, kind in found.types.items() if kind == "histogram"}
    assert len(histograms) == 10
    for name in histograms:
        series: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
        for (sample, labels), value in found.samples.items():
            if sample == f"{name}_bucket":
                rest = frozenset(pair for pair in labels if pair[0] != "le")
                series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
        assert series
        for rest, buckets in series.items():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts)
            assert counts[-1] == found.samples[f"{name}_count", rest]


def test_requests_that_do_not_come_to_their_end_are_counted_by_how(server: RunningServer) -> None:
    endless = {"prompt": "abc", "num_predict": 10**6, "ignore_eos": True}
    with server.stream(**endless) as response:
        next(response.iter_lines())  # and the client leaves
    server.post(prompt="x[[prefill fail]]")
    assert "error" in server.ndjson(prompt="ab[[fail]]", num_predict=99)[-1]
    server.post(prompt="")
    server.client.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
    server.client.get("/anything", headers={"host": "elsewhere.example"})
    server.ndjson(**endless, timeout_s=0.3)
    server.post(prompt="x" * 400_000)

    found = scrape_until(server.client, lambda s: s.requests(outcome="cancelled") == 1)
    assert found.requests(outcome="cancelled", reason="client_left", model_name="echo") == 1
    assert found.requests(outcome="failed", reason="engine_failed", model_name="echo") == 2
    assert found.requests(outcome="failed", reason="deadline_exceeded") == 1
    assert found.requests(outcome="refused", reason="invalid_request", model_name="") == 1
    assert found.requests(outcome="refused", reason="model_not_found", model_name="") == 1
    assert found.requests(outcome="refused", reason="context_length", model_name="echo") == 1
    assert found.requests(outcome="refused", reason="foreign_host", path="other") == 1
    assert found.requests(outcome="finished") == 0
    assert found.requests() == 8
    assert found.sum("tokenflume_e2e_request_latency_seconds_count") == 0


def test_what_runs_and_what_waits_is_told_while_it_does(tmp_path: Path) -> None:
    path = echo_options(tmp_path, slots=1)
    with (
        RunningServer("--engine", "echo", "-m", str(path), "--queue", "1") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        with server.stream(prompt=ENDLESS) as response:
            next(response.iter_lines())
            waiting = threads.submit(server.post, prompt="abc")
            found = scrape_until(
                server.client, lambda s: s.sum("tokenflume_num_requests_waiting") == 1
            )
            assert found.sum("tokenflume_num_requests_running") == 1
            assert found.sum("tokenflume_worker_requests_running", worker="0") == 1
            assert found.sum("tokenflume_slots") == 1
            assert server.post(prompt="one too many").status_code == 429
        server.kill_workers()  # a sleeping engine does not hear that its client has left
        assert waiting.result().status_code == 200
        found = scrape(server.client)
        assert found.requests(reason="queue_full", outcome="refused") == 1
        queued = found.sum("tokenflume_request_queue_time_seconds_sum")
        assert queued > 0
        assert found.sum("tokenflume_num_requests_waiting") == 0


def test_a_worker_that_dies_is_counted_by_its_cause_and_its_figures_stay(
    server: RunningServer,
) -> None:
    server.post(prompt="abc", num_predict=3)
    scrape_until(server.client, lambda s: decode_steps(s) == 2)
    server.kill_workers()
    server.until_ready()
    assert "error" in server.ndjson(prompt="x[[exit]]", num_predict=99)[-1]
    server.wait_for_log("exited with status 1")
    server.until_ready()

    found = scrape(server.client)
    assert found.sum("tokenflume_worker_deaths_total", worker="0", cause="sigkill") == 1
    assert found.sum("tokenflume_worker_deaths_total", worker="0", cause="exit_1") == 1
    assert found.requests(outcome="failed", reason="worker_died") == 1
    assert decode_steps(found) >= 2
    assert found.sum("tokenflume_generation_tokens_total") >= 3
    assert found.sum("tokenflume_worker_state", state="ready") == 1


def test_a_worker_has_one_state_and_memory_of_its_own(server: RunningServer) -> None:
    (worker,) = server.workers()
    found = scrape(server.client)
    assert found.sum("tokenflume_worker_state") == 1
    assert found.labels("tokenflume_worker_state", "state") == {
        "loading", "ready", "replacing", "given_up",
    }  # fmt: skip
    resident = found.sum("tokenflume_worker_resident_memory_bytes", worker="0")
    assert resident == pytest.approx(worker.memory_info().rss, rel=0.2)
    assert 0 < found.sum("tokenflume_worker_proportional_memory_bytes") <= resident
    assert found.sum("tokenflume_worker_cpu_seconds_total") > 0
    front = psutil.Process(server.process.pid)
    assert found.sum("process_resident_memory_bytes") == pytest.approx(
        front.memory_info().rss, rel=0.2
    )
    assert found.sum("tokenflume_model_loaded_ratio", model_name="echo") == 1
    assert found.sum("tokenflume_build_info") == 1


@pytest.mark.usefixtures("both_cores")
def test_two_models_are_told_apart(llama_gguf: Path, tmp_path: Path) -> None:
    with RunningServer("-m", f"small={llama_gguf}", "-m", f"other={llama_gguf}") as server:
        server.until(lambda state: state["workers"] == 2)
        for model, count in (("small", 2), ("other", 3)):
            for _ in range(count):
                server.ndjson(prompt="Grüße", num_predict=4, model=model, ignore_eos=True)
        found = scrape_until(server.client, lambda s: decode_steps(s) == 5 * 3)
        for model, count in (("small", 2), ("other", 3)):
            assert found.requests(model_name=model) == count
            assert found.sum("tokenflume_generation_tokens_total", model_name=model) == 4 * count
            steps = {"kind": "decode", "model_name": model}
            assert found.sum("tokenflume_iteration_tokens_sum", **steps) == 3 * count
            assert found.sum("tokenflume_iteration_time_seconds_sum", model_name=model) > 0
        assert found.labels("tokenflume_slots", "model_name") == {"small", "other"}
        assert found.labels("tokenflume_worker_state", "worker") == {"0", "1"}


def test_a_model_of_a_folder_is_there_before_it_is_loaded(llama_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "tales.gguf").symlink_to(llama_gguf)
    with RunningServer("--models-dir", str(tmp_path)) as server:
        found = scrape(server.client)
        assert found.sum("tokenflume_model_loaded_ratio", model_name="tales") == 0
        assert found.sum("tokenflume_worker_state") == 0
        server.post(prompt="x", num_predict=2)
        found = scrape(server.client)
        assert found.sum("tokenflume_model_loaded_ratio", model_name="tales") == 1
        assert found.requests(model_name="tales") == 1


def test_embeddings_are_counted_without_a_first_token(server: RunningServer) -> None:
    answer = server.client.post("/v1/embeddings", json={"input": ["abc", "de"]})
    assert answer.status_code == 200
    found = scrape_until(
        server.client, lambda s: s.sum("tokenflume_iteration_tokens_sum", kind="embed") == 5
    )
    assert found.requests(path="/v1/embeddings", reason="stop") == 1
    assert found.sum("tokenflume_time_to_first_token_seconds_count") == 0


def test_without_a_key_there_are_no_metrics_where_keys_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("prometheus 0123456789abcdef\n")
    with RunningServer("--engine", "echo", "--api-key-file", str(path), wait_ready=False) as server:
        assert server.client.get("/metrics").status_code == 401
        headers = {"authorization": "Bearer 0123456789abcdef"}
        with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
            found = scrape(client)
        assert found.requests(outcome="refused", reason="unauthorized", path="other") == 1


def test_openmetrics_is_spoken_to_who_asks_for_it(server: RunningServer) -> None:
    server.post(prompt="abc")
    accept = {"accept": "application/openmetrics-text; version=1.0.0, text/plain; q=0.5"}
    response = server.client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    names = {f.name for f in openmetrics.text_string_to_metric_families(response.text)}
    assert "tokenflume_requests" in names


def test_every_metric_of_the_dashboard_is_there(server: RunningServer) -> None:
    server.ndjson(prompt="abc", num_predict=3)
    scrape_until(server.client, lambda s: decode_steps(s) > 0)
    server.kill_workers()  # so that a death is there, too
    server.until_ready()
    found = scrape(server.client)
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = list(expressions_of(dashboard))
    assert len(expressions) > 15
    for expression in expressions:
        names = metric_names(expression)
        assert names, expression
        assert names <= found.names, (expression, names - found.names)
