"""The server's life: start, log, SIGTERM, kill -9, configuration errors; with the real models."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.helpers import models
from tests.helpers.running import RunningServer, run_to_its_end, text_of
from tests.helpers.support import echo_options


@pytest.fixture(scope="module")
def tales() -> RunningServer:
    """The bundled model, as `tokenflume` without flags serves it."""
    with RunningServer() as running:
        yield running  # type: ignore[misc]


def test_the_log_says_the_cpu_the_sampling_the_plan_and_the_loading_times(
    tales: RunningServer,
) -> None:
    tales.until(lambda state: state["workers"] == len(tales.workers()))
    log = "\n".join(tales.log)
    assert re.search(r"cpu: .+; ", log)
    assert "temp 0.8, top_k 40, top_p 0.95, repeat_penalty 1.3 over 64 tokens" in log
    assert re.search(r"plan +\d+ workers?, \d+ threads?", log)
    workers = len(tales.workers())
    loads = re.findall(r"worker \d+ \(pid \d+\): loaded llama on llama_cpp in \d+\.\d\d s", log)
    assert len(loads) == workers


def test_each_worker_is_pinned_to_cpus_of_its_own(tales: RunningServer) -> None:
    """Also those of its engine's threads, which it inherits them to."""
    masks = [set(worker.cpu_affinity()) for worker in tales.workers()]
    assert sum(map(len, masks)) == len(set().union(*masks))
    assert set().union(*masks) <= set(os.sched_getaffinity(0))


def test_the_bundled_model_tells_a_tale_in_words(tales: RunningServer) -> None:
    *tokens, last = tales.ndjson(prompt="Once upon a time", num_predict=60, temp=0)
    text = "".join(token["token"] for token in tokens)
    words = re.findall(r"[A-Za-z]+", text)
    common = {
        "the",
        "a",
        "and",
        "was",
        "to",
        "of",
        "there",
        "had",
        "who",
        "he",
        "she",
        "in",
        "king",
    }
    assert len(words) > 30
    assert sum(word.lower() in common for word in words) > len(words) / 5
    assert last["usage"]["prompt_tokens"] >= 5


def test_the_same_seed_tells_the_same_tale(tales: RunningServer) -> None:
    body = {"prompt": "The wolf said:", "num_predict": 40, "seed": 11}
    tale = text_of(tales.post(**body).text)
    assert text_of(tales.post(**body).text) == tale
    assert text_of(tales.post(**{**body, "seed": 12}).text) != tale


def test_n_batch_does_not_change_the_tale(tales: RunningServer) -> None:
    body = {"prompt": "There was once a king " * 10, "num_predict": 30, "temp": 0}
    tale = tales.post(**body).text
    assert tales.post(**body, n_batch=1).text == tale
    assert tales.post(**body, n_batch=300).text == tale


@pytest.mark.parametrize(
    ("build", "model_type"),
    [(models.build_llama_ggjt, "llama"), (models.build_gpt2_ggml, "gpt2")],
)
def test_ggml_era_files_stream_and_split_no_character(
    tmp_path: Path, build: object, model_type: str
) -> None:
    path = build(tmp_path / "old.bin")  # type: ignore[operator]
    with RunningServer("-m", str(path), "--model-type", model_type, "-n", "256") as running:
        response = running.post(prompt="é語🙂 Wolf", num_predict=150, seed=3, ignore_eos=True)
        assert response.status_code == 200
        text = text_of(response.text)
        assert response.text.count("\n") == 150
        assert any(character in text for character in "é語🙂")
        assert "\ufffd" not in text.strip("\ufffd")


def test_a_model_that_does_not_load_is_exit_status_3_and_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(200))
    ended = run_to_its_end("-m", str(path))
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].startswith("tokenflume: llama.cpp cannot load")
    assert "broken.gguf" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_an_environment_variable_configures_as_its_flag_does(tmp_path: Path) -> None:
    ended = run_to_its_end(TOKENFLUME_MODEL=str(tmp_path / "none.gguf"))
    assert ended.returncode == 3
    assert (
        ended.stderr
        == f"tokenflume: {tmp_path}/none.gguf cannot be read: no such file or directory\n"
    )


@pytest.mark.usefixtures("both_cores")
def test_a_restart_within_a_stream_of_requests_loses_only_what_was_cut(tmp_path: Path) -> None:
    path = echo_options(tmp_path, step_s=0.005)
    with RunningServer("--engine", "echo", "-m", str(path), "--workers", "2") as running:
        running.until(lambda state: state["workers"] == 2)
        running.workers()[0].kill()
        running.wait_for_log("was ended by SIGKILL")
        started = time.monotonic()
        answers = [running.post(prompt=f"request {n}", num_predict=99) for n in range(20)]
        assert [text_of(answer.text) for answer in answers] == [f"request {n}" for n in range(20)]
        assert time.monotonic() - started < 20
