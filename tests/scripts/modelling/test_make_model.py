"""The models that other tests load, and the script that makes large ones, really work."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from scripts.modelling import make_model
from scripts.modelling.llama_gguf import LlamaShape, write_llama
from tests.helpers.models import MULTIBYTE, build_gpt2_ggml, build_llama_ggjt, build_llama_gguf

PROMPT = "The fox — “quick” — jumps\n\tover 日本 né 🦊; 1 + 1 = 2."

# Native code that meets a bad file may end the process: so it has one of its own. Its
# tokenizer writes to a buffer without a look at its length: so that is long enough.
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

# Of each format: ctransformers' model_type, the builder, and the types it can write.
FORMATS: dict[str, tuple[str, Callable[..., Path], tuple[str, ...]]] = {
    "llama GGUF": ("", build_llama_gguf, ("F32", "F16", "Q8_0", "Q4_0")),
    "llama GGJT": ("llama", build_llama_ggjt, ("F32", "F16")),
    "GPT-2 GGML": ("gpt2", build_gpt2_ggml, ("F32", "F16")),
}
FILES = [(name, kind) for name, (_, _, kinds) in FORMATS.items() for kind in kinds]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """What ctransformers says of all files of a format, in a process for that format."""

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


def test_a_character_that_is_no_piece_takes_a_token_for_each_byte(probed: dict[str, Any]) -> None:
    first = 0 if "GPT-2" in probed["format"] else make_model.FIRST_BYTE
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


# ---------------------------------------------------------------- scripts/modelling/make_model.py


def test_the_command_writes_a_model_of_the_shape_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    sizes = "--layers 3 --width 96 --heads 6 --kv-heads 3 --hidden 64 --vocabulary 300"
    assert make_model.main([*sizes.split(), "--context", "128", "-o", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["llama.block_count"] == 3
    assert fields["llama.attention.head_count_kv"] == 3
    assert fields["llama.context_length"] == 128
    assert len(fields["tokenizer.ggml.tokens"]) == 300
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.2.ffn_down.weight"] == [64, 96]
    assert shapes["blk.2.attn_k.weight"] == [96, 48]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--width 66", "width 66 cannot be cut into 4 heads of an even width"),
        ("--width 60 --type F16 --heads 20", "width 60 cannot be cut into 20 heads"),
        ("--kv-heads 3", "4 heads cannot share 3 kv-heads evenly"),
        ("--layers 0", "layers must be at least 1, not 0"),
        ("--context -1", "context must be at least 1, not -1"),
        ("--vocabulary 259", "vocabulary must be 260 to 262144 tokens, not 259"),
        ("--width 72 --type Q4_0", "Q4_0 needs a multiple of 32 as width, not 72"),
        ("--hidden 100", "Q8_0 needs a multiple of 32 as hidden, not 100"),
        ("--type Q4_K_M", "Q4_K_M needs a multiple of 256 as width, not 64"),
        ("--seed -1", "seed must be at least 0, not -1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_in_one_sentence(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = make_model.main([*options.split(), "-o", str(tmp_path / "model.gguf")])
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert output.err.startswith(f"make_model: {message}")
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_model.main(["-o", str(tmp_path / "nowhere" / "model.gguf")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_the_script_runs_as_a_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "scripts.modelling.make_model",
        "--kv-heads",
        "3",
        "-o",
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "make_model: 4 heads cannot share 3 kv-heads evenly\n"


def test_the_presets_are_as_large_as_their_names_say() -> None:
    millions = {
        name: round(make_model.parameters(shape) / 1e6)
        for name, shape in make_model.SHAPES.items()
        if name != "tiny"
    }
    assert millions == {
        "small-24m": 24,
        "tinyllama-1.1b": 1100,
        "llama-7b": 6738,
        "mistral-7b": 7242,
    }


def test_the_large_presets_can_have_every_type() -> None:
    for name, shape in make_model.SHAPES.items():
        for kind in make_model.TYPES:
            if (name, kind) != ("tiny", "Q4_K_M"):
                make_model.check_shape(shape, kind)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_streamed_file_is_the_same_as_one_written_whole(kind: str, tmp_path: Path) -> None:
    shape = make_model.SHAPES["tiny"]
    streamed, whole = tmp_path / "streamed.gguf", tmp_path / "whole.gguf"
    for path, stream in ((streamed, True), (whole, False)):
        _write(path, shape, _weights(shape), kind=kind, stream=stream)
    assert streamed.read_bytes() == whole.read_bytes()


def test_a_streamed_file_refuses_tensors_out_of_order_or_missing(tmp_path: Path) -> None:
    shape = make_model.SHAPES["tiny"]
    weights = _weights(shape)
    for wrong in (weights[::-1], weights[:-1]):
        with pytest.raises(ValueError, match=r"came in the place of|shorter"):
            _write(tmp_path / "model.gguf", shape, wrong, kind="F16", stream=True)


def test_every_piece_of_a_vocabulary_can_come_out_of_the_tokenizer() -> None:
    vocabulary = make_model.make_vocabulary(3000)
    assert len(set(vocabulary.pieces)) == len(vocabulary.pieces) == 3000
    pieces = [piece.decode() for piece in vocabulary.pieces[make_model.FIRST_CHARACTER :]]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    assert [make_model.split(piece, ranks) for piece in pieces] == [[piece] for piece in pieces]
    scores = vocabulary.scores[make_model.FIRST_CHARACTER :]
    assert all(better > worse for better, worse in itertools.pairwise(scores))


@pytest.mark.parametrize("size", [make_model.SMALLEST_VOCABULARY, 300, 1000])
def test_a_vocabulary_has_the_size_asked_for_and_all_bytes(size: int) -> None:
    vocabulary = make_model.make_vocabulary(size)
    assert len(vocabulary.pieces) == len(vocabulary.scores) == len(vocabulary.types) == size
    assert vocabulary.types.count(gguf.TokenType.BYTE) == 256


def test_no_two_rows_of_a_large_matrix_are_alike() -> None:
    noise = make_model.Noise(seed=1)
    rows = noise.array((40_000, 64), 0.5)
    assert rows.std() == pytest.approx(0.5, rel=0.01)
    assert abs(float(rows.mean())) < 0.01
    assert len({hashlib.sha1(np.abs(row).tobytes()).digest() for row in rows}) == len(rows)


def test_q4_k_m_without_llama_cpp_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    options = ["--width", "256", "--hidden", "256", "--type", "Q4_K_M"]
    assert make_model.main([*options, "-o", str(tmp_path / "model.gguf")]) == 2
    assert "pip install 'tokenflume[llama]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outcome", [0, 1])
def test_q4_k_m_is_made_by_llama_cpp_from_an_f16_file_that_does_not_stay(
    outcome: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized: list[int] = []

    def quantize(source: bytes, target: bytes, params: Any) -> int:
        assert gguf.GGUFReader(source.decode()).fields["general.file_type"].contents() == 1
        Path(target.decode()).write_bytes(b"quantized")
        quantized.append(params._obj.ftype)
        return outcome

    class Params(ctypes.Structure):
        _fields_ = (("ftype", ctypes.c_int),)

    stand_in = types.SimpleNamespace(
        LLAMA_FTYPE_MOSTLY_Q4_K_M=15,
        llama_backend_init=lambda: None,
        llama_model_quantize_default_params=Params,
        llama_model_quantize=quantize,
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    options = ["--width", "256", "--hidden", "256", "--type", "Q4_K_M"]
    path = tmp_path / "model.gguf"
    assert make_model.main([*options, "-o", str(path)]) == 2 * outcome
    assert quantized == [15]
    assert list(tmp_path.iterdir()) == ([] if outcome else [path])


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
def test_q4_k_m_files_hold_k_quants(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = dataclasses.replace(make_model.SHAPES["tiny"], width=256, hidden=256)
    make_model.make_model(path, shape, "Q4_K_M", seed=1)
    kinds = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert gguf.GGMLQuantizationType.Q4_K in kinds


def _weights(shape: LlamaShape) -> list[tuple[str, np.ndarray]]:
    bias = make_model.plain_bias(make_model.make_vocabulary(shape.vocabulary))
    return list(make_model.random_weights(shape, bias, seed=1))


def _write(
    path: Path,
    shape: LlamaShape,
    weights: list[tuple[str, np.ndarray]],
    *,
    kind: str,
    stream: bool,
) -> None:
    vocabulary = make_model.make_vocabulary(shape.vocabulary)
    quantization = gguf.GGMLQuantizationType[kind]
    write_llama(path, shape, vocabulary, weights, quantization, name="A model", stream=stream)
