"""Model files with a few changed bytes. What reads them before they are loaded succeeds or raises
ConfigurationError, and takes little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from shared.messages import Ready
from shared.values import ModelCard, ModelInfo
from shared.wire import PROTOCOL, encode_frame
from tests.helpers.gguf_damage import STRING, entry, text, with_entries, with_number, with_text
from tests.helpers.support import model_settings
from workers.engines.choice import choose_engine
from workers.engines.memory_plan import plan_memory
from workers.model_files.card import MAX_NAME, gguf_card
from workers.model_files.details import MAX_FAMILY, read_details
from workers.model_files.folder import list_model_files
from workers.model_files.gguf_header import read_gguf_header

HEAD = 12_000
"""Bytes of the header at the beginning of a file. The rest are weights."""
NUMBERS = [
    number.to_bytes(8, "little") for number in (0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
]
CHANGES = st.lists(
    st.tuples(st.integers(0, HEAD), st.binary(min_size=1, max_size=4) | st.sampled_from(NUMBERS)),
    max_size=4,
)
MANY = settings(max_examples=120, suppress_health_check=list(HealthCheck))


def looked_at(path: Path, model_type: str | None) -> int:
    """Do everything that happens to a file before a worker loads it. Returns the number of
    successes."""
    found = 0
    tracemalloc.start()
    try:
        for model in list_model_files(path.parent):
            for look in (
                lambda: choose_engine(path, model_type),
                lambda: plan_memory(model_settings("llama_cpp", path, context=4096, slots=4), 4),
                lambda model=model: json.dumps(read_details(model).family),
                lambda: card_of(path),
            ):
                try:
                    look()
                    found += 1
                except ConfigurationError as error:
                    assert str(path) in str(error)
                    assert len(str(error)) < 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    return found


def card_of(path: Path) -> ModelCard:
    """The file's card, which must fit into one frame."""
    card = gguf_card(path, read_gguf_header(path))
    info = ModelInfo("llama_cpp", "llama", 256, 257, 4, 64, (), card=card)
    encode_frame([Ready(PROTOCOL, info, 1.0)])
    return card


@pytest.mark.parametrize("kind", ["llama_gguf", "llama_ggjt", "gpt2_ggml"])
def test_a_changed_or_truncated_file_is_refused_or_read(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    good = request.getfixturevalue(kind).read_bytes()
    path = tmp_path / f"model{'.gguf' if kind == 'llama_gguf' else '.bin'}"

    @MANY
    @given(CHANGES, st.integers(0, len(good)) | st.just(len(good)), st.sampled_from([None, "gpt2"]))
    @example([], len(good), "gpt2")
    def check(changes: list[tuple[int, bytes]], end: int, model_type: str | None) -> None:
        data = bytearray(good)
        for place, change in changes:
            data[place : place + len(change)] = change
        path.write_bytes(data[:end])
        looked_at(path, model_type)

    check()


@settings(MANY, max_examples=60)
@given(
    st.sampled_from(
        ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"]
    ),
    st.integers(0, 2**32 - 1),
)
def test_a_header_with_impossible_sizes_is_refused_or_read(
    llama_gguf: Path, tmp_path: Path, key: str, value: int
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(with_number(llama_gguf.read_bytes(), f"llama.{key}".encode(), value))
    assert looked_at(path, None) == 4


def test_very_long_texts_are_cut_before_they_are_sent(llama_gguf: Path, tmp_path: Path) -> None:
    good, long = llama_gguf.read_bytes(), b"n" * (9 << 20)
    path = tmp_path / "model.gguf"
    path.write_bytes(with_text(good, b"general.name", long))
    assert len(card_of(path).name) == MAX_NAME
    path.write_bytes(with_entries(good, entry(b"tokenizer.chat_template", STRING, text(long))))
    assert card_of(path).chat_template == ""
    path.write_bytes(with_text(good, b"general.architecture", long))
    (model,) = list_model_files(tmp_path)
    assert read_details(model).family == "n" * MAX_FAMILY


def test_a_very_long_architecture_is_cut_in_the_message_that_refuses_it(
    llama_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engines.choice.has_llama_cpp", lambda: False)
    path = tmp_path / "model.gguf"
    path.write_bytes(with_text(llama_gguf.read_bytes(), b"general.architecture", b"n" * 100_000))
    with pytest.raises(ConfigurationError, match=r"needs llama\.cpp") as caught:
        choose_engine(path, None)
    assert len(str(caught.value)) < 1000


def test_the_names_of_bos_and_eos_count_as_names_of_control_tokens(llama_gguf: Path) -> None:
    card = gguf_card(llama_gguf, read_gguf_header(llama_gguf), bos="b" * (9 << 20), eos="e")
    assert (card.bos, card.eos, card.control) == ("", "", ())
