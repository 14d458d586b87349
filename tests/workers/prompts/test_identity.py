"""The identity of saved prompts differs for every other model, engine or setting."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.settings import ModelSettings
from tests.helpers.support import model_settings
from workers.engines.table import load_engine
from workers.model_files.content_digest import SEGMENT
from workers.model_files.split_names import model_parts
from workers.prompts.files import Identity
from workers.prompts.identity import model_identity
from workers.prompts.known_digest import FILE_NAME, SETTLED_NS, known_digest

SIZE = 3 * SEGMENT + 12345
"""Size of a model file in these tests, in bytes."""


@dataclass(frozen=True, slots=True)
class SavingEngine:
    """The part of an engine that an identity needs."""

    state_format: str = "a format"


def identity(path: Path | None, state_format: str = "a format", **settings: Any) -> Identity:
    engine = SavingEngine(state_format)
    return model_identity(model_settings(path=path, **settings), engine)  # type: ignore[arg-type]


def write_model(path: Path, size: int = SIZE) -> Path:
    """Write a file in which no two samples are equal."""
    block = bytes(range(251)) * 1000
    with path.open("wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
        file.truncate(size)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model.gguf")


@contextmanager
def changed(path: Path, place: int, length: int = 1) -> Iterator[None]:
    """Change the bytes of the file from `place` on, within the context."""
    with path.open("r+b", buffering=0) as file:
        file.seek(place)
        before = file.read(length)
        file.seek(place)
        file.write(bytes(byte ^ 0xFF for byte in before))
        try:
            yield
        finally:
            file.seek(place)
            file.write(before)


def test_the_same_file_has_the_same_identity(model: Path) -> None:
    assert identity(model) == identity(model)


def test_a_copy_has_the_same_identity_whatever_its_name(model: Path, tmp_path: Path) -> None:
    copy = shutil.copyfile(model, tmp_path / "copy.bin")
    assert identity(copy) == identity(model)


@given(st.integers(0, SIZE - 1))
@settings(max_examples=25)
@example(0)
@example(SEGMENT - 1)
@example(SEGMENT)
@example(SIZE - 1)
def test_another_byte_makes_another_model_wherever_it_is(model: Path, place: int) -> None:
    """Samples of the file were compared: a changed tensor between two of them was not seen."""
    before = identity(model)
    with changed(model, place):
        assert identity(model).model != before.model
    assert identity(model) == before


def test_every_part_of_a_split_model_counts(tmp_path: Path) -> None:
    """Only the first part was read: models with equal first parts used each other's states."""
    parts = [write_model(tmp_path / f"m-0000{n}-of-00003.gguf", 1000 * n) for n in (1, 2, 3)]
    before = identity(parts[0])
    for part in parts:
        with changed(part, 999):
            assert identity(parts[0]) != before
    assert identity(parts[0]) == before


def test_where_one_part_ends_and_the_next_begins_counts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_bytes(b"abc")
    second.write_bytes(b"d")
    before = identity(first)
    first.write_bytes(b"ab")
    second.write_bytes(b"cd")
    assert identity(first) != before


def test_a_file_that_only_has_the_name_of_a_part_is_a_model_of_its_own(tmp_path: Path) -> None:
    alone = write_model(tmp_path / "m-00001-of-00002.gguf", 100)
    assert model_parts(alone) == (alone,)
    assert identity(alone) == identity(shutil.copyfile(alone, tmp_path / "copy.gguf"))


# ---------------------------------------------------------------- digests that are kept


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A model that nobody has changed for long enough."""
    path = write_model(tmp_path / "settled.gguf", 1000)
    while path.stat().st_ctime_ns >= time.time_ns() - SETTLED_NS:
        time.sleep(0.05)
    return path


def test_a_large_models_digest_is_kept_until_its_file_changes(settled: Path) -> None:
    """Also if the edit leaves the size, and the editor sets the old time of modification."""
    folder = settled.parent
    before = known_digest([settled], folder, least_bytes=1)
    kept = folder / FILE_NAME
    name, digest = kept.read_text().split()
    assert digest == before
    kept.write_text(f"{name} {'0' * 64}\n")
    assert known_digest([settled], folder, least_bytes=1) == "0" * 64
    status = settled.stat()
    with changed(settled, 500):
        os.utime(settled, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert known_digest([settled], folder, least_bytes=1) not in (before, "0" * 64)


@pytest.mark.parametrize("damage", ["", "x", "\0" * 130, "é", "a" * 64 + " " + "b" * 64 + "\n"])
def test_a_damaged_digest_is_computed_again(settled: Path, damage: str) -> None:
    before = known_digest([settled], None)
    (settled.parent / FILE_NAME).write_text(damage)
    assert known_digest([settled], settled.parent, least_bytes=1) == before


def test_a_digest_that_cannot_be_kept_is_a_warning(
    settled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = known_digest([settled], settled.parent / "missing", least_bytes=1)
    assert digest == known_digest([settled], None)
    assert "cannot be written" in caplog.text


def test_the_digest_of_a_file_that_has_just_changed_is_not_kept(tmp_path: Path) -> None:
    """Its next change may leave the same times."""
    known_digest([write_model(tmp_path / "new.gguf", 1000)], tmp_path, least_bytes=1)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_byte_more_or_less_makes_another_model(tmp_path: Path) -> None:
    """Even if all bytes that are read of them are equal."""
    found = set()
    for size in (SIZE - 1, SIZE, SIZE + 1):
        path = tmp_path / "model.gguf"
        with path.open("wb") as file:
            file.truncate(size)  # zeros
        found.add(identity(path).model)
    assert len(found) == 3


@pytest.mark.parametrize("size", [1, 100, SEGMENT - 1, SEGMENT + 1])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, size: int) -> None:
    path = write_model(tmp_path / "small.gguf", size)
    before = identity(path)
    assert before == identity(path)
    for place in {0, size // 2, size - 1}:
        with changed(path, place):
            assert identity(path).model != before.model


def test_files_of_different_small_sizes_have_different_identities(tmp_path: Path) -> None:
    sizes = [0, 1, 2, SEGMENT - 1, SEGMENT, SEGMENT + 1]
    found = {identity(write_model(tmp_path / "x.gguf", size)).model for size in sizes}
    assert len(found) == len(sizes)


def test_an_empty_file_and_no_file_have_different_identities(tmp_path: Path) -> None:
    assert identity(write_model(tmp_path / "empty", 0)) != identity(None)


# ---------------------------------------------------------------- engines and settings


def test_another_state_format_changes_the_identity_of_states_but_not_of_the_model(
    model: Path,
) -> None:
    one, other = identity(model, "a format"), identity(model, "another format")
    assert one.model == other.model
    assert (one.state, other.state) == ("a format", "another format")


@pytest.mark.parametrize("path_is_given", [True, False])
def test_another_model_type_is_another_model(model: Path, path_is_given: bool) -> None:
    path = model if path_is_given else None
    kinds = [None, "gpt2", "gptj", "llama"]
    assert len({identity(path, model_type=kind).model for kind in kinds}) == len(kinds)


def test_another_engine_is_another_model(model: Path) -> None:
    engines = ["llama_cpp", "ctransformers", "echo"]
    assert len({identity(model, engine=engine).model for engine in engines}) == len(engines)


def test_an_engine_and_a_model_type_are_not_confused() -> None:
    names = [("ab", "c"), ("a", "bc"), ("abc", "")]
    found = {identity(None, engine=engine, model_type=kind).model for engine, kind in names}
    assert len(found) == len(names)


def test_how_a_model_is_run_does_not_matter(model: Path) -> None:
    first: ModelSettings = model_settings(path=model, context=256, slots=1)
    then = replace(first, context=512, slots=4, batch=32, kv_memory=10**9, mlock=True)
    one, other = (model_identity(each, SavingEngine()) for each in (first, then))  # type: ignore[arg-type]
    assert one == other


def test_without_a_file_the_engine_alone_counts() -> None:
    assert identity(None) == identity(None)


def test_a_real_engine_has_an_identity() -> None:
    found = model_identity(model_settings("echo"), load_engine(model_settings("echo"), threads=1))
    assert found == identity(None, "echo, characters")


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        identity(tmp_path / "missing.gguf")
    with pytest.raises(IsADirectoryError):
        identity(tmp_path)
