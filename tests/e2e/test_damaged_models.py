"""Damaged and hostile files in --models-dir: the server lives, and says which model it is."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.gguf_damage import (
    FLOAT32,
    STRING,
    entry,
    text,
    with_entries,
    with_number,
    with_text,
)
from tests.helpers.running import RunningServer

pytest.importorskip("llama_cpp")
ENDLESS = b"x" * (9 << 20)
LOOP = b"{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def server(llama_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    good = llama_gguf.read_bytes()
    folder = tmp_path_factory.mktemp("damaged")
    not_a_number = struct.pack("<f", math.nan)
    files = {
        "good": good,
        "nan": with_entries(good, entry(b"general.strange", FLOAT32, not_a_number)),
        "long-name": with_text(good, b"general.name", ENDLESS),
        "long-architecture": with_text(good, b"general.architecture", ENDLESS),
        "two-lines": with_text(good, b"general.architecture", b"x\n2026 ERROR forged\x1b[31m"),
        "template": with_entries(good, entry(b"tokenizer.chat_template", STRING, text(LOOP))),
        "wide": with_number(good, b"llama.embedding_length", 2**32 - 1),
        "no-layers": with_number(good, b"llama.block_count", 0),
        "shape": with_number(good, b"llama.feed_forward_length", 7),
        "cut": good[: len(good) // 2],
        "head": good[:100],
    }
    for name, data in files.items():
        (folder / f"{name}.gguf").write_bytes(data)
    flags = ("--models-dir", str(folder), "--memory-limit", "1G", "-n", "64", "--slots", "1")
    with RunningServer(*flags) as running:
        yield running
        # A worker may die of a file; the front and its log do not suffer.
        assert running.post(model="good", prompt="x", num_predict=2).status_code == 200
        assert max(map(len, running.log)) < 3000
        assert not any(re.match("Traceback|2026 ERROR forged", line) for line in running.log)


def test_lists_have_those_whose_headers_can_be_read(server: RunningServer) -> None:
    names = {model["name"] for model in server.client.get("/api/tags").json()["models"]}
    assert {"good", "nan", "long-name", "no-layers"} <= names
    assert {model["id"] for model in server.client.get("/v1/models").json()["data"]} == names
    for name in ("cut", "head"):
        server.log_has(rf"the model {name} is not served")


@pytest.mark.parametrize("name", ["nan", "long-name", "template"])
def test_what_is_odd_and_does_no_harm_is_served(server: RunningServer, name: str) -> None:
    shown = server.client.post("/api/show", json={"model": name})
    assert shown.status_code == 200
    if name == "nan":
        assert shown.json()["model_info"]["general.strange"] is None
    assert server.post(model=name, prompt="x", num_predict=2).status_code == 200
    assert server.client.get("/v1/models").status_code == 200
    chat = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert server.client.post("/v1/chat/completions", json=chat).status_code == 200


@pytest.mark.parametrize("name", ["long-architecture", "two-lines", "wide", "no-layers", "shape"])
def test_what_cannot_be_loaded_is_an_error_that_names_the_model(
    server: RunningServer, name: str
) -> None:
    assert server.client.post("/api/show", json={"model": name}).status_code == 200
    answer = server.post(model=name, prompt="x")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "model_unavailable"
    assert error["message"].startswith(name)
    assert len(error["message"]) < 2000
    assert error["message"].isprintable()


@pytest.mark.parametrize("name", ["cut", "head"])
def test_what_is_no_model_is_a_404_that_names_it(server: RunningServer, name: str) -> None:
    answer = server.post(model=name, prompt="x")
    assert answer.status_code == 404
    assert f"there is no model '{name}'" in answer.json()["error"]["message"]
