"""Several models on the real server: side by side, and a folder of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.running import RunningServer, run_to_its_end, text_of
from tests.helpers.support import echo_options, model_settings
from workers.engines.memory_plan import plan_memory


@pytest.fixture(scope="module")
def pair(both_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = echo_options(tmp_path_factory.mktemp("pair"), slots=1)
    flags = ("--engine", "echo", "-m", f"chat={path}", "-m", f"code={path}", "--num-threads", "2")
    with RunningServer(*flags) as running:
        running.until(lambda state: all(model["is_loaded"] for model in state["models"]))
        yield running


@pytest.fixture(scope="module")
def folder(llama_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Three small models, two of which fit into the memory."""
    path = tmp_path_factory.mktemp("folder")
    for name in ("one", "two", "three"):
        shutil.copy(llama_gguf, path / f"{name}.gguf")
    (path / "notes.txt").write_text("no model")
    settings = model_settings("llama_cpp", llama_gguf, context=64, slots=1)
    limit = int(2.9 * plan_memory(settings, workers=1).total_bytes)
    flags = ("--models-dir", str(path), "--memory-limit", str(limit))
    flags += ("-n", "64", "--slots", "1", "--workers", "1")
    with RunningServer(*flags) as running:
        yield running


def states(server: RunningServer) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in server.client.get("/ready").json()["models"]}


def test_a_request_names_its_model_and_the_first_is_the_default(pair: RunningServer) -> None:
    for body in ({"model": "chat"}, {"model": "code"}, {}):
        assert text_of(pair.post(prompt="hello", num_predict=9, **body).text) == "hello"
    with pair.stream(model="chat", prompt="x[[sleep 20]]") as held:
        lines = held.iter_lines()  # if nobody held it, the connection would be closed
        next(lines)
        assert states(pair)["chat"]["active"] == 1
        assert states(pair)["code"]["active"] == 0
        # The neighbour is not disturbed by a stream that holds all of the first one.
        assert text_of(pair.post(model="code", prompt="hello", num_predict=9).text) == "hello"
    pair.kill_workers()
    pair.until(lambda state: all(model["is_loaded"] for model in state["models"]))


def test_each_model_has_cores_of_its_own(pair: RunningServer) -> None:
    cpus = [worker.cpu_affinity() for worker in pair.workers()]
    assert len(cpus) == 2
    assert not set(cpus[0]) & set(cpus[1])


@pytest.mark.parametrize("path", ["/stream", "/token_stream"])
def test_an_unknown_model_is_a_404_that_lists_those_there_are(
    pair: RunningServer, path: str
) -> None:
    body = {"prompt" if path == "/stream" else "query": "x", "model": "gpt"}
    answer = pair.client.post(path, json=body)
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "code": "model_not_found",
        "message": "there is no model 'gpt'; there are: chat, code",
    }


def test_one_models_death_is_not_the_others(pair: RunningServer) -> None:
    assert pair.post(model="chat", prompt="x[[prefill abort]]").status_code == 503
    assert text_of(pair.post(model="code", prompt="hello", num_predict=9).text) == "hello"
    pair.until(lambda state: all(model["is_loaded"] for model in state["models"]))


def test_a_folders_models_are_loaded_when_they_are_asked_for(folder: RunningServer) -> None:
    assert set(states(folder)) == {"one", "two", "three"}
    for name in ("one", "two"):
        answer = folder.post(model=name, prompt="a", num_predict=4)
        assert answer.status_code == 200, answer.text
    assert {name for name, state in states(folder).items() if state["is_loaded"]} == {"one", "two"}
    assert folder.post(model="three", prompt="a", num_predict=4).status_code == 200
    assert {name for name, state in states(folder).items() if state["is_loaded"]} == {
        "two",
        "three",
    }


def test_a_folder_that_is_gone_is_told_once_and_costs_only_what_is_not_loaded(
    llama_gguf: Path, tmp_path: Path
) -> None:
    """/ready and the lists used to answer 500."""
    path, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    path.mkdir()
    for name in ("one", "two"):
        shutil.copy(llama_gguf, path / f"{name}.gguf")
    flags = ("--models-dir", str(path), "-n", "64", "--slots", "1", "--workers", "1")
    with RunningServer(*flags) as server:
        assert server.post(model="one", prompt="x", num_predict=2).status_code == 200
        path.rename(elsewhere)
        assert server.post(model="new", prompt="x").status_code == 503
        for _ in range(2):
            assert set(states(server)) == {"one", "two"}
            listed = server.client.get("/v1/models").json()["data"]
            assert [model["id"] for model in listed] == ["one", "two"]
            assert server.client.get("/api/tags").json() == {"models": []}
            assert server.client.get("/metrics").status_code == 200
        assert server.post(model="one", prompt="x", num_predict=2).status_code == 200
        refused = server.post(model="two", prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert "the models' folder cannot be read" in refused.json()["error"]["message"]
        assert sum("the models' folder cannot be read" in line for line in server.log) == 1
        elsewhere.rename(path)
        assert server.post(model="two", prompt="x", num_predict=2).status_code == 200
        server.wait_for_log("the models' folder can be read again")


def test_a_folder_of_several_has_no_default(folder: RunningServer) -> None:
    answer = folder.post(prompt="a")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "model is missing; there are: one, three, two"


def test_an_incomplete_model_in_a_folder_is_no_model_and_disturbs_no_other(
    folder: RunningServer, llama_gguf: Path
) -> None:
    place = Path(folder._flags[1]) / "cut.gguf"
    place.write_bytes(llama_gguf.read_bytes()[:-5_000])
    try:
        answer = folder.post(model="cut", prompt="a")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
    finally:
        place.unlink()
    assert folder.post(model="one", prompt="a", num_predict=4).status_code == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-m", "a=x.gguf", "-m", "a=y.gguf"), "two models have the name a"),
        (("--models-dir", ".", "-m", "x.gguf"), "exclude each other"),
        (("--memory-limit", "1G"), "--memory-limit needs --models-dir"),
        (("--models-dir", "/nonexistent"), "cannot be read"),
        (("--num-threads", "1", "-m", "a=x", "-m", "b=y"), "2 models need a core each"),
    ],
)
def test_what_cannot_be_served_ends_with_status_3_and_a_sentence(
    flags: tuple[str, ...], words: str
) -> None:
    ended = run_to_its_end("--engine", "echo", *flags)
    assert ended.returncode == 3
    assert words in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("origin", ["https://a.example", "https://b.example"])
def test_pages_of_other_origins_may_ask_only_if_they_are_named(origin: str) -> None:
    with RunningServer("--engine", "echo", "--cors-origin", "https://a.example") as server:
        answer = server.client.post("/stream", json={"prompt": "x"}, headers={"origin": origin})
        preflight = server.client.options(
            "/stream",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type",
            },
        )
    allowed = origin if origin == "https://a.example" else None
    assert answer.status_code == (200 if allowed else 400)
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert preflight.headers.get("access-control-allow-origin") == allowed


def test_without_the_flag_no_origin_may(pair: RunningServer) -> None:
    answer = pair.client.post(
        "/stream", json={"prompt": "x"}, headers={"origin": "https://a.example"}
    )
    assert answer.status_code == 400
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_question_is_answered_with_raw_text(pair: RunningServer) -> None:
    answer = pair.client.post("/token_stream", json={"query": "Where is Paris ?"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "User: Where is Paris ?\nAssistant:"
