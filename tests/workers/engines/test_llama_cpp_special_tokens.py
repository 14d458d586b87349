"""Special tokens that a model's file does not name."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from shared.sampling import LogitBias, SamplingParams
from tests.helpers import models
from tests.helpers.support import model_settings
from tests.workers.engines.test_engines import generate
from workers.engines.base import Engine
from workers.engines.table import load_engine

pytest.importorskip("llama_cpp")
COMMA = 11
"""llama.cpp's id of BOS and EOS in a byte-level BPE vocabulary that names none."""
GREEDY = SamplingParams(temp=0.0, repeat_penalty=1.0, num_predict=5)


def without_ids(path: Path, **added: bool) -> Path:
    """A qwen2 model that names no special token, and whose control tokens are unknown ones."""
    whole = gguf.GGUFReader(models.build_qwen2_gguf(path.with_name("whole.gguf")))
    writer = gguf.GGUFWriter(path, "qwen2")
    for field in whole.fields.values():
        name = field.name
        if name.startswith(("GGUF.", "general.architecture")) or name.endswith("_token_id"):
            continue
        content = field.contents()
        if name == "tokenizer.ggml.tokens":
            content = [text.replace("<|", "<*") for text in content]
        if name == "tokenizer.ggml.add_bos_token":
            continue
        kind, *of = field.types
        writer.add_key_value(name, content, kind, *of)
    for key, value in added.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path) -> Engine:
    settings = model_settings("llama_cpp", path=path, context=256)
    return load_engine(settings, threads=1)


def test_an_end_that_the_file_does_not_name_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers of a BPE model without an eos id ended at token 11, a comma."""
    with caplog.at_level(logging.WARNING):
        engine = load(without_ids(tmp_path / "m.gguf"))
    assert "the model has no token that ends an answer" in caplog.text
    assert not any(engine.is_end(token) for token in range(engine.info.vocabulary))
    assert engine.info.card.eos == engine.info.card.bos == ""
    commas = replace(GREEDY, logit_bias=(LogitBias(COMMA, 100.0),), ignore_eos=True)
    assert generate(engine, "a", commas, count=5) == [COMMA] * 5


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_eos_token": True}])
def test_a_bos_or_eos_that_the_file_does_not_name_is_not_added(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    """Each prompt of such a model began or ended with a comma."""
    engine = load(without_ids(tmp_path / "m.gguf", **flags))
    assert COMMA not in engine.tokenize("ab")
    assert engine.tokenize("ab") == engine.tokenize("ab", is_start=False)


def test_a_grammars_answer_ends_when_it_is_complete(tmp_path: Path) -> None:
    """llama.cpp allows what it takes for an end, a comma, where a grammar's text is complete."""
    engine = load(without_ids(tmp_path / "m.gguf"))
    params = replace(GREEDY, grammar='root ::= "abc"')
    tokens = generate(engine, "a", params)
    assert b"".join(engine.piece(token) for token in tokens) == b"abc"
