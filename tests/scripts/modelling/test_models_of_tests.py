"""The models that other tests load really work."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from scripts.modelling.vocabulary import FIRST_BYTE
from tests.helpers.models import MULTIBYTE, build_gpt2_ggml, build_llama_ggjt, build_llama_gguf

PROMPT = "The fox — “quick” — jumps\n\tover 日本 né 🦊; 1 + 1 = 2."

# A bad file may crash native code, so it runs in a process of its own. Its tokenizer does not check
# the length of its buffer, so that is long enough.
PROBE = """
import ctypes, json, math, sys
from ctransformers import LLM, Config

def tokenize(model, text):
    buffer = (ctypes.c_int * (len(text.encode()) + 8))()
    count = model.ctransformers_llm_tokenize(text.encode(), False, buffer)
    return buffer[:count]

def generate(model, tokens, count, **options):
    model._context.clear()
    model.eval(tokens)
    written = []
    for seed in range(count):
        written.append(model.sample(repetition_penalty=1.0, seed=seed, **options))
        model.eval(written[-1:])
    return written

model_type, prompt, *paths = sys.argv[1:]
for path in paths:
    model = LLM(path, model_type or None, config=Config(context_length=256, threads=1))
    tokens = tokenize(model, prompt)
    greedy = generate(model, tokens, 20, top_k=1, temperature=1.0)
    sampled = generate(model, tokens, 100, top_k=40, temperature=0.8)
    print(json.dumps({
        "vocabulary": model.vocab_size,
        "context": model.context_length,
        "ends": [model.bos_token_id, model.eos_token_id],
        "tokens": tokens,
        "prompt": model.detokenize(tokens, decode=False).hex(),
        "greedy": greedy,
        "sampled": sampled,
        "text": model.detokenize(sampled, decode=False).hex(),
        "finite": all(map(math.isfinite, model.logits)),
    }))
"""

FORMATS: dict[str, tuple[str, Callable[..., Path], tuple[str, ...]]] = {
    "llama GGUF": ("", build_llama_gguf, ("F32", "F16", "Q8_0", "Q4_0")),
    "llama GGJT": ("llama", build_llama_ggjt, ("F32", "F16")),
    "GPT-2 GGML": ("gpt2", build_gpt2_ggml, ("F32", "F16")),
}
"""For each format: the model_type of ctransformers, the builder, and the types it can write."""
FILES = [(name, kind) for name, (_, _, kinds) in FORMATS.items() for kind in kinds]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """What ctransformers reports of all files of a format, in a process for that format."""

    @functools.cache
    def probe_format(name: str) -> list[dict[str, Any]]:
        model_type, build, kinds = FORMATS[name]
        folder = tmp_path_factory.mktemp("models")
        paths = [build(folder / kind, kind=kind) for kind in kinds]
        command = [sys.executable, "-c", PROBE, model_type, PROMPT, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        reports = map(json.loads, done.stdout.splitlines())
        return [
            {"format": name, "size": path.stat().st_size, **report}
            for path, report in zip(paths, reports, strict=True)
        ]

    return probe_format


@pytest.fixture(params=FILES, ids=" ".join)
def probed(request: pytest.FixtureRequest, probe: Callable[[str], list[dict[str, Any]]]) -> Any:
    name, kind = request.param
    return probe(name)[FORMATS[name][2].index(kind)]


def test_a_model_loads_and_is_small(probed: dict[str, Any]) -> None:
    assert probed["size"] < 1_000_000
    assert probed["vocabulary"] == 512
    assert probed["context"] == 256
    assert probed["ends"] == ([511, 511] if "GPT-2" in probed["format"] else [1, 2])


def test_a_prompt_comes_back_from_its_tokens(probed: dict[str, Any]) -> None:
    prompt = bytes.fromhex(probed["prompt"]).decode()
    if "GGUF" in probed["format"]:
        prompt = prompt.removeprefix(" ")  # llama's tokenizer begins every text with a space
    assert prompt == PROMPT


def test_a_character_that_is_not_a_piece_takes_a_token_for_each_byte(
    probed: dict[str, Any],
) -> None:
    first = 0 if "GPT-2" in probed["format"] else FIRST_BYTE
    fox = [first + byte for byte in "🦊".encode()]
    tokens = probed["tokens"]
    assert fox in [tokens[i : i + 4] for i in range(len(tokens))]


def test_greedy_text_is_varied(probed: dict[str, Any]) -> None:
    assert len(probed["greedy"]) == 20
    assert len(set(probed["greedy"])) >= 8


def test_sampled_text_is_varied_and_does_not_end_by_itself(probed: dict[str, Any]) -> None:
    assert probed["finite"]
    assert len(set(probed["sampled"])) >= 30
    assert not set(probed["sampled"]) & set(probed["ends"])


def test_characters_of_several_bytes_come_out_in_several_tokens(probed: dict[str, Any]) -> None:
    text = bytes.fromhex(probed["text"]).decode(errors="replace")
    assert any(character in text for character in MULTIBYTE)


@pytest.mark.parametrize("build", [build_llama_gguf, build_llama_ggjt, build_gpt2_ggml])
def test_the_same_seed_gives_the_same_bytes(build: Callable[..., Path], tmp_path: Path) -> None:
    first, second, other = (
        build(tmp_path / name, seed=seed).read_bytes()
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert first == second
    assert first != other


def test_a_larger_end_bias_ends_texts_sooner(tmp_path: Path) -> None:
    for end in (0.0, 4.0):
        path = build_llama_gguf(tmp_path / "model.gguf", kind="F32", end=end)
        weights = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
        assert weights["output.weight"][2, 0] == end
