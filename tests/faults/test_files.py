"""Files that are cut, altered or cannot be written: models, and saved prompts."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.config.options import BUNDLED_MODEL
from tests.helpers import models
from tests.helpers.gguf_files import write_gguf
from tests.helpers.running import RunningServer
from workers.prompts.files import path_of

TALE = "Once upon a time there was a fox who lived at the edge of a dark wood. " * 6
ASK = {"prompt": TALE, "cache": 7, "temp": 0, "num_predict": 12, "ignore_eos": True}
BUNDLED = ("-m", str(BUNDLED_MODEL), "-t", "1", "--workers", "1", "-n", "512")
PATIENT = ("--restart-wait", "0.1", "--max-deaths", "1000")


# ---------------------------------------------------------------- models


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda whole: whole[: int(len(whole) * share)]


def overwritten(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:offset] + value + whole[offset + len(value) :]


def after(mark: bytes, value: bytes, skip: int = 0) -> Callable[[bytes], bytes]:
    """Overwrite what stands so many bytes behind the first `mark`."""
    return lambda whole: overwritten(whole.index(mark) + len(mark) + skip, value)(whole)


HUGE = struct.pack("<Q", 2**62)
ALL_ONES = b"\xff" * 8
HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "cut-after-magic": lambda whole: whole[:4],
    "cut-in-head": lambda whole: whole[:20],
    "cut-in-fields": cut(0.01),
    "cut-in-vocabulary": cut(0.05),
    "cut-in-weights": cut(0.6),
    "cut-at-end": lambda whole: whole[:-1],
    "version": overwritten(4, b"\xff\xff\xff\xff"),
    "tensors-huge": overwritten(8, HUGE),
    "fields-huge": overwritten(16, HUGE),
    "key-length": overwritten(24, ALL_ONES),
    "no-fields": overwritten(16, bytes(8)),
    "vocabulary-huge": after(b"tokenizer.ggml.tokens", HUGE, skip=8),
    "layers-many": after(b"llama.block_count", b"\xff\xff\xff\x7f", skip=4),
    "width-zero": after(b"llama.embedding_length", bytes(4), skip=4),
    "tensor-shape": after(b"token_embd.weight", ALL_ONES, skip=4),
}


def test_fault_11_hostile_model_files_are_refused_by_name_and_other_models_are_served(
    llama_gguf: Path, tmp_path: Path
) -> None:
    """One server that has them all in its folder: whatever a file does, the next one is asked."""
    whole = llama_gguf.read_bytes()
    (tmp_path / "sound.gguf").write_bytes(whole)
    for name, make in HOSTILE.items():
        (tmp_path / f"{name}.gguf").write_bytes(make(whole))
    flags = ("--models-dir", str(tmp_path), "--workers", "1", "-n", "64", *PATIENT[:2])
    with RunningServer(*flags, "--load-timeout", "20") as server:
        pid = server.process.pid
        for name in HOSTILE:
            answer = server.post(model=name, prompt="x", num_predict=2)
            assert answer.status_code in (404, 500, 503), (name, answer.text)
            assert name in answer.json()["error"]["message"], answer.text
            if answer.status_code == 404:  # it was found unusable when the folder was read
                why = "is not (a usable GGUF file|complete)"
                server.log_has(f"the model {name} is not served: .*{name}.gguf {why}")
        assert server.post(model="sound", prompt="x", num_predict=2).status_code == 200
        assert server.client.get("/health").status_code == 200
        assert server.process.pid == pid


def test_fault_11_a_library_that_dies_of_a_file_costs_workers_and_not_the_front(
    tmp_path: Path,
) -> None:
    """A file of the GGML era, cut early: its loader reads past the end."""
    whole = models.build_llama_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: len(whole) // 50])
    flags = ("-m", str(path), "--engine", "ctransformers", "--workers", "1")
    with RunningServer(*flags, wait_ready=False) as server:
        server.wait_for_log("worker 0 was ended by SIG")
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/ready").status_code == 503
        server.log_has("cut.gguf")


def test_fault_52_files_that_are_no_models_are_not_listed_and_said_once(tmp_path: Path) -> None:
    """A projector, an adapter, a vocabulary and a download without its last byte were listed as
    models, and each request for one was a 500."""
    whole = models.build_llama_gguf(tmp_path / "sound.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-1])
    write_gguf(tmp_path / "mmproj.gguf", "clip", "mmproj")
    write_gguf(tmp_path / "lora.gguf", "llama", "adapter")
    write_gguf(tmp_path / "imatrix.gguf", "", "imatrix")
    write_gguf(tmp_path / "vocab.gguf", "llama", tensors=0)
    others = ("cut", "mmproj", "lora", "imatrix", "vocab")
    with RunningServer("--models-dir", str(tmp_path), "--workers", "1", "-n", "64") as server:
        for _ in range(2):
            (tmp_path / "sound.gguf").touch()
            for name in others:
                answer = server.post(model=name, prompt="x", num_predict=2)
                assert answer.status_code == 404, answer.text
        listed = server.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["sound"]
        assert server.post(model="sound", prompt="x", num_predict=2).status_code == 200
        for name in others:
            said = [line for line in server.log if f"the model {name} is not served: " in line]
            assert len(said) == 1, said


# ---------------------------------------------------------------- saved prompts


def ask(server: RunningServer, **fields: Any) -> tuple[str, int]:
    """The answer's text, and how many tokens of the prompt were not processed again."""
    *tokens, last = server.ndjson(**{**ASK, **fields})
    return "".join(token["token"] for token in tokens), last["usage"]["cached_tokens"]


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def may_mount() -> bool:
    """Root in a container often may not."""
    if os.geteuid() != 0:
        return False
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def test_fault_40_a_full_disk_costs_the_cache_and_no_request(tmp_path: Path) -> None:
    """A file system of 256 KiB; the prompt's state takes more."""
    if not may_mount():
        pytest.skip("a small file system can only be mounted as root")
    with (
        small_file_system(tmp_path / "small", "256k") as folder,
        RunningServer(*BUNDLED, *PATIENT, "--cache-dir", str(folder)) as server,
    ):
        text, _ = ask(server)
        server.wait_for_log(f"saved prompts in {folder}: .*No space left on device")
        again, cached = ask(server)
        assert again == text
        assert cached > 100  # from memory
        assert list(folder.iterdir()) == []
        server.kill_workers()
        server.until_ready()
        assert ask(server) == (text, 0)


def test_fault_40_a_saved_prompt_that_is_altered_or_cut_is_dropped_and_no_text_is_wrong(
    tmp_path: Path,
) -> None:
    with RunningServer(*BUNDLED, *PATIENT, "--cache-dir", str(tmp_path)) as server:
        text, _ = ask(server)
        path = path_of(tmp_path, ASK["cache"])
        until_written(server, path)
        whole = path.read_bytes()
        damaged = [flipped(whole, share) for share in (0.0, 0.1, 0.9)]
        damaged += [whole[: int(len(whole) * share)] for share in (0.0, 0.5)]
        for data in (*damaged, whole[:-1], whole + b"x"):
            server.kill_workers()
            path.write_bytes(data)
            server.until_ready()
            assert ask(server) == (text, 0)
            server.wait_for_log("prompt 7 is processed again, its file deleted: ")
            until_written(server, path)
            assert len(path.read_bytes()) == len(whole)
        server.kill_workers()
        server.until_ready()
        again, cached = ask(server)
        assert again == text
        assert cached > 100


def flipped(whole: bytes, share: float) -> bytes:
    """With one bit of another value, so far into the file."""
    place = min(len(whole) - 1, int(len(whole) * share))
    return overwritten(place, bytes([whole[place] ^ 1]))(whole)


def until_written(server: RunningServer, path: Path) -> None:
    """A worker writes behind its answers; one that is asked to end finishes it."""
    listed = server.client.get("/cache").json()["prompts"]
    assert [prompt["id"] for prompt in listed] == [ASK["cache"]]
    server.until(lambda _: path.exists())


# ---------------------------------------------------------------- weights


def test_fault_51_a_saved_prompt_is_not_used_with_an_altered_tensor(
    llama_gguf: Path, tmp_path: Path
) -> None:
    """A fine-tuned copy under the old name continued from the old weights' states, silently."""
    model = tmp_path / "model.gguf"
    whole = llama_gguf.read_bytes()
    place = len(whole) * 5 // 8 + 1234
    altered = overwritten(place, bytes([whole[place] ^ 0x55]))(whole)
    check_that_prompts_are_apart(tmp_path, model, {model: whole}, {model: altered})


def test_fault_51_a_saved_prompt_is_not_used_with_another_second_part(tmp_path: Path) -> None:
    """Of a split model only the first part was looked at."""
    sides = []
    for seed in (5, 6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        whole = models.build_llama_gguf(tmp_path / "model.gguf", seed=seed)
        sides.append(models.split_gguf(whole, folder, 3))
    served = tmp_path / "served"
    served.mkdir()
    (first, second), places = sides, [served / part.name for part in sides[0]]
    one = {place: part.read_bytes() for place, part in zip(places, first, strict=True)}
    other = {**one, places[1]: second[1].read_bytes()}
    check_that_prompts_are_apart(tmp_path, places[0], one, other)


def check_that_prompts_are_apart(
    tmp_path: Path, model: Path, one: dict[Path, bytes], other: dict[Path, bytes]
) -> None:
    """Save a prompt with `one`, the contents of the model's files; ask again with the `other`."""
    saved = tmp_path / "saved"
    flags = ("-m", str(model), "--workers", "1", "-n", "256", "--cache-dir", str(saved))
    for contents, expected in ((one, 0), (one, 1), (other, 0)):
        for path, content in contents.items():
            path.write_bytes(content)
        with RunningServer(*flags) as server:
            _, cached = ask(server, prompt="once upon a time there was " * 4)
            assert bool(cached) == bool(expected)
            until_written(server, path_of(saved, ASK["cache"]))
