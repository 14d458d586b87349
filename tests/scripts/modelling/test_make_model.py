"""The command that writes models with random weights."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import gguf
import pytest

from scripts.modelling import make_model
from scripts.modelling.shapes import SHAPES


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
        ("--width 66", "width 66 cannot be split into 4 heads of an even width"),
        ("--width 60 --type F16 --heads 20", "width 60 cannot be split into 20 heads"),
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
    shape = dataclasses.replace(SHAPES["tiny"], width=256, hidden=256)
    make_model.make_model(path, shape, "Q4_K_M", seed=1)
    kinds = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert gguf.GGMLQuantizationType.Q4_K in kinds
