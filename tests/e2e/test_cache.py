"""Prompts are processed once: by the real server, over requests, workers and restarts."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.paths import BUNDLED
from tests.helpers.running import RunningServer, run_to_its_end
from tests.helpers.support import echo_options
from workers.prompts.files import path_of

TALE = "Once upon a time there was a fox who lived at the edge of a dark wood. "
LONG = TALE * 6
ASK = {"temp": 0, "repeat_penalty": 1, "num_predict": 12, "ignore_eos": True}
MODEL = ("-m", str(BUNDLED), "-t", "1", "--workers", "1", "-n", "512")


def ask(server: RunningServer, prompt: str, **fields: Any) -> tuple[str, dict[str, int]]:
    """The text of an answer, and its counts."""
    *tokens, last = server.ndjson(prompt=prompt, **{**ASK, **fields})
    return "".join(token["token"] for token in tokens), last["usage"]


def listing(server: RunningServer) -> dict[int, dict[str, Any]]:
    answer = server.client.get("/cache")
    assert answer.status_code == 200
    return {prompt["id"]: prompt for prompt in answer.json()["prompts"]}


@pytest.fixture(scope="module")
def tales() -> RunningServer:
    with RunningServer(*MODEL) as running:
        yield running  # type: ignore[misc]


@pytest.mark.parametrize("engine", ["llama_cpp", "ctransformers"])
def test_a_prompt_sent_again_has_the_same_text_and_hardly_any_work(engine: str) -> None:
    if engine == "llama_cpp":
        pytest.importorskip("llama_cpp")
    with RunningServer(*MODEL, "--engine", engine) as server:
        text, first = ask(server, LONG)
        again, second = ask(server, LONG)
    assert again == text
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == second["prompt_tokens"] - 1


def test_chats_go_on_where_they_were_and_tell_what_they_would_have_told(
    tales: RunningServer,
) -> None:
    """Two of them, in turn; the same turns are asked of a server that has forgotten everything."""
    chats = [f"{LONG}One day the fox ", f"{LONG}One night the wolf "]
    turns: list[tuple[str, str, int]] = []
    for turn in range(4):
        for number, chat in enumerate(chats):
            text, usage = ask(tales, chat)
            turns.append((chat, text, usage["cached_tokens"]))
            chats[number] = f"{chat}{text} {turn} "
    assert all(cached > 100 for _, _, cached in turns[1:])
    with RunningServer(*MODEL, "--cache-limit", "0") as other:
        for chat, text, _ in turns:
            ask(other, "x" * 40)
            # Whatever is not the beginning of the chat pushes it out of the only slot.
            assert ask(other, chat)[0] == text


def test_a_worker_that_dies_between_turns_costs_its_memory_and_no_text(tmp_path: Path) -> None:
    with RunningServer(*MODEL, "--cache-dir", str(tmp_path)) as server:
        text, _ = ask(server, LONG, cache=7)
        without, _ = ask(server, TALE)
        server.kill_workers()
        server.until_ready()
        again, usage = ask(server, LONG, cache=7)
        assert again == text
        assert usage["cached_tokens"] > 0  # from the file
        assert ask(server, TALE)[0] == without


def test_an_id_begins_from_its_file_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "prompts"
    with RunningServer(*MODEL, "--cache-dir", str(folder)) as server:
        text, _ = ask(server, LONG, cache=7)
        assert listing(server)[7]["in_memory_of"] == 1
    assert path_of(folder, 7).exists()
    assert oct(folder.stat().st_mode)[-3:] == "700"
    with RunningServer(*MODEL, "--cache-dir", str(folder)) as server:
        known = listing(server)[7]
        assert (known["in_memory_of"], known["on_disk"]) == (0, True)
        longer, usage = ask(server, LONG + text, cache=7)
        assert usage["cached_tokens"] > 100
        assert longer


@pytest.mark.usefixtures("both_cores")
def test_an_id_begins_from_its_file_on_another_worker(tmp_path: Path) -> None:
    options = echo_options(tmp_path, slots=1)
    flags = ("--engine", "echo", "-m", str(options), "--workers", "2")
    folder = tmp_path / "prompts"
    with RunningServer(*flags, "--cache-dir", str(folder)) as server:
        server.until(lambda state: state["workers"] == 2)
        ask(server, LONG, cache=7)
        held = threading.Event()

        def hold() -> None:
            """Keep the worker that has the prompt busy."""
            with server.stream(prompt=f"{LONG}[[sleep 2]]", **{**ASK, "num_predict": 999}) as it:
                for _ in it.iter_raw():
                    held.set()

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(20)
        _, usage = ask(server, LONG + "and more", cache=7)
        thread.join()
        assert usage["cached_tokens"] == len(LONG)
        assert listing(server)[7]["in_memory_of"] == 2


def test_a_deleted_id_is_gone_from_memory_and_disk(tmp_path: Path) -> None:
    with RunningServer(
        "--engine", "echo", "--workers", "1", "--cache-dir", str(tmp_path)
    ) as server:
        ask(server, LONG, cache=7)
        ask(server, TALE, cache=8)
        assert set(listing(server)) == {7, 8}
        assert listing(server)[7]["tokens"] == len(LONG)
        answer = server.client.delete("/cache/7")
        assert (answer.status_code, answer.json()) == (200, {"id": 7, "deleted": True})
        assert set(listing(server)) == {8}
        assert server.client.delete("/cache/7").status_code == 404
    assert not path_of(tmp_path, 7).exists()
    assert path_of(tmp_path, 8).exists()


@pytest.mark.parametrize(
    "name",
    [
        "0",
        "-1",
        "x",
        "7.prompt",
        "../7",
        "%2e%2e%2fsecret",
        "%E2%88%95etc",
        "9" * 30,
        "%D9%A7",
        "1e3",
    ],
)
def test_what_is_no_id_is_a_404_and_touches_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.prompt").write_text("x")
    folder = tmp_path / "prompts"
    with RunningServer("--engine", "echo", "--workers", "1", "--cache-dir", str(folder)) as server:
        url = httpx.URL(server.url).copy_with(raw_path=f"/cache/{name}".encode())
        assert server.client.delete(url).status_code == 404
    assert (tmp_path / "secret.prompt").exists()


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    with RunningServer(
        "--engine", "echo", "--workers", "1", "--cache-dir", str(tmp_path)
    ) as server:
        path_of(tmp_path, 7).mkdir()
        text, _ = ask(server, TALE, cache=7, num_predict=len(TALE))
        assert text == TALE
        server.wait_for_log("saved prompts in ")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_an_engine_without_states_says_so_and_keeps_the_tokens() -> None:
    with RunningServer(*MODEL, "--engine", "ctransformers") as server:
        ask(server, LONG, cache=7)
        answer = server.client.get("/cache").json()
        assert answer["saves_states"] is False
        assert answer["prompts"][0]["tokens"] > 100


# ---------------------------------------------------------------- one prompt for all


@pytest.mark.parametrize("engine", ["llama_cpp", "ctransformers"])
def test_a_prompt_is_processed_once_and_every_request_continues_from_it(
    engine: str, tmp_path: Path
) -> None:
    if engine == "llama_cpp":
        pytest.importorskip("llama_cpp")
    flags = (*MODEL, "--engine", engine)
    text, saved = tmp_path / "tale.txt", tmp_path / "tale.prompt"
    text.write_text(LONG)
    done = run_to_its_end(*flags, "--cache-prompt", str(saved), "--prompt-file", str(text))
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) tokens processed in .+ s and saved in .+\n", done.stdout)
    assert said
    with RunningServer(*flags, "-R", str(saved)) as server:
        for prompt in ("One day", "One night", "One day he"):
            restored, usage = ask(server, prompt)
            assert usage["cached_tokens"] >= int(said[1])
            assert usage["prompt_tokens"] > int(said[1])
            assert restored
    with RunningServer(*flags) as server:
        # A word's own space belongs to its token.
        whole, usage = ask(server, f"{LONG.rstrip()} One day he")
    assert whole == restored


def test_a_prompt_to_restore_whose_state_is_damaged_is_processed_again(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    text, saved = tmp_path / "tale.txt", tmp_path / "tale.prompt"
    text.write_text(LONG)
    run_to_its_end(*MODEL, "--cache-prompt", str(saved), "--prompt-file", str(text))
    with RunningServer(*MODEL, "-R", str(saved)) as server:
        expected, _ = ask(server, "One day he")
    saved.write_bytes(saved.read_bytes()[:-100])
    with RunningServer(*MODEL, "-R", str(saved)) as server:
        server.log_has("the prompt to restore is processed again")
        again, usage = ask(server, "One day he")
    assert again == expected
    assert usage["cached_tokens"] > 100


def test_a_prompt_that_cannot_be_restored_or_made_is_exit_status_3_and_a_sentence(
    tmp_path: Path,
) -> None:
    text, saved, rubbish = (tmp_path / name for name in ("tale.txt", "tale.prompt", "rubbish"))
    text.write_text(LONG)
    rubbish.write_bytes(b"rubbish")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    made = run_to_its_end(*MODEL, "--cache-prompt", str(saved), "--prompt-file", str(text))
    assert made.returncode == 0
    echo = ("--engine", "echo", "--workers", "1")
    make = "--cache-prompt"
    for flags, sentence in (
        ((*echo, "-R", str(rubbish)), "rubbish is not a saved prompt"),
        ((*echo, "-R", str(tmp_path / "none")), "none cannot be read: No such file"),
        ((*echo, "-R", str(saved)), "was made with another model or engine"),
        ((*MODEL, "-n", "16", "-R", str(saved)), "the context holds 16"),
        ((*echo, make, str(saved)), "--cache-prompt needs --prompt-file"),
        ((*echo, "--prompt-file", str(text)), "--prompt-file needs --cache-prompt"),
        ((*echo, make, str(saved), "--prompt-file", str(tmp_path / "none")), "cannot be read"),
        ((*echo, make, str(saved), "--prompt-file", str(tmp_path / "latin")), "not text in UTF-8"),
        ((*echo, make, str(tmp_path / "no" / "x"), "--prompt-file", str(text)), "be written"),
        ((*echo, "--cache-dir", str(rubbish)), "rubbish cannot be used: File exists"),
    ):
        ended = run_to_its_end(*flags)
        assert ended.returncode == 3, (flags, ended.stderr)
        assert sentence in ended.stderr.splitlines()[-1]
