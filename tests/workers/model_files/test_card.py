"""A model's card from its file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest

from tests.helpers import models
from tests.helpers.support import echo_options, model_settings
from workers.engines.table import load_engine
from workers.model_files.card import FILE_TYPES, MAX_NAMES, MAX_TEMPLATE, file_size, gguf_card
from workers.model_files.gguf_header import GgufHeader, read_gguf_header

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def header(**metadata: Any) -> GgufHeader:
    values = {"general.architecture": "llama", **metadata}
    return GgufHeader(100, 3, values, {}, 0, frozenset(), 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x" * 100)
    return path


def test_an_empty_header_makes_an_empty_card(path: Path) -> None:
    card = gguf_card(path, header())
    assert (card.name, card.chat_template, card.quantization, card.trained_context) == (
        "",
        "",
        "",
        0,
    )
    assert (card.size, card.parameters) == (100, 7)


def test_the_card_has_the_values_of_the_header(path: Path) -> None:
    said = {
        "general.name": "Tales",
        "general.file_type": 15,
        "llama.context_length": 4096,
        "tokenizer.chat_template": TEMPLATE,
    }
    card = gguf_card(path, header(**said), bos="<s>", eos="</s>", control=["<s>"], parameters=9)
    assert (card.name, card.quantization, card.trained_context) == ("Tales", "Q4_K_M", 4096)
    assert card.chat_template == TEMPLATE
    assert (card.bos, card.eos, card.control, card.parameters) == ("<s>", "</s>", ("<s>",), 9)


@pytest.mark.parametrize("value", ["15", True, -1, 999, 1.0])
def test_an_invalid_file_type_has_no_name(path: Path, value: object) -> None:
    said = {"general.file_type": value, "llama.context_length": -4, "general.name": 5}
    card = gguf_card(path, header(**said))
    assert (card.quantization or "F16") == "F16"
    assert (card.trained_context, card.name) == (0, "")


def test_file_types_have_the_names_of_llama_cpp() -> None:
    named = {
        value: name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
        for name, value in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_") and name != "LLAMA_FTYPE_GUESSED"
    }
    assert named == FILE_TYPES


def test_a_template_that_is_too_long_is_not_used(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longest = "é" * (MAX_TEMPLATE // 2)
    assert gguf_card(path, header(**{"tokenizer.chat_template": longest})).chat_template == longest
    with caplog.at_level(logging.WARNING):
        card = gguf_card(path, header(**{"tokenizer.chat_template": f"{longest}x"}))
    assert card.chat_template == ""
    assert "chat template is not used" in caplog.text


def test_without_the_names_of_control_tokens_there_is_no_template(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["x" * 1000] * (MAX_NAMES // 1000 + 1)
    card = gguf_card(path, header(**{"tokenizer.chat_template": TEMPLATE}), control=names)
    assert (card.chat_template, card.control) == ("", ())
    assert "names of control tokens" in caplog.text


def test_the_size_of_a_split_file_is_that_of_its_parts(tmp_path: Path) -> None:
    for part in (1, 2, 3):
        (tmp_path / f"big-{part:05}-of-00003.gguf").write_bytes(b"x" * part)
    (tmp_path / "big-00001-of-00002.gguf").write_bytes(b"x" * 50)
    assert file_size(tmp_path / "big-00002-of-00003.gguf") == 6


def test_llama_cpps_card_has_the_whole_template_and_all_names(tmp_path: Path) -> None:
    plain = models.build_qwen2_gguf(tmp_path / "plain.gguf")
    reader = gguf.GGUFReader(plain)
    template = TEMPLATE + "{# long #}" * 5000
    writer = gguf.GGUFWriter(tmp_path / "chat.gguf", "qwen2")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub_type)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    engine = load_engine(model_settings("llama_cpp", tmp_path / "chat.gguf"), 1)

    card = engine.info.card
    assert card.chat_template == template
    assert card.control == ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
    assert (card.bos, card.eos) == ("<|endoftext|>", "<|im_end|>")
    assert card.quantization == "F16"
    assert card.parameters == read_gguf_header(plain).n_params


def test_the_echo_engines_card_has_the_template_of_its_options(tmp_path: Path) -> None:
    settings = model_settings(path=echo_options(tmp_path, chat_template=TEMPLATE))
    card = load_engine(settings, 1).info.card
    assert (card.chat_template, card.control, card.eos) == (TEMPLATE, ("<|eot|>",), "<|eot|>")
