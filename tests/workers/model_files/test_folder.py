"""The models of a folder: which files are models, their names and their sizes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from workers.model_files.folder import ModelFile, list_model_files

MODEL = b"GGUF" + bytes(60)


def write(folder: Path, *names: str, data: bytes = MODEL) -> Path:
    """Write files with these names, and return the last one."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return path


def names_in(folder: Path) -> list[str]:
    return [model.name for model in list_model_files(folder)]


def test_a_model_has_the_name_of_its_file_without_the_suffix(tmp_path: Path) -> None:
    path = write(tmp_path, "mistral-7b-instruct.Q4_K_M.gguf")
    os.utime(path, ns=(5, 7))
    expected = ModelFile("mistral-7b-instruct.Q4_K_M", (path,), len(MODEL), 7)
    assert list_model_files(tmp_path) == (expected,)
    assert expected.path == path


@pytest.mark.parametrize("magic", [b"GGUF", b"lmgg", b"tjgg", b"fmgg", b"algg"])
def test_a_model_is_recognised_by_its_first_bytes(tmp_path: Path, magic: bytes) -> None:
    write(tmp_path, "old.bin", "bare", "with.dots", data=magic)
    write(tmp_path, "notes.gguf", data=b"not a model")
    write(tmp_path, "empty.gguf", data=b"")
    assert names_in(tmp_path) == ["bare", "old", "with.dots"]


def test_files_in_direct_subfolders_count_and_deeper_ones_do_not(tmp_path: Path) -> None:
    write(tmp_path, "b.gguf", "x/a.gguf", "x/y/deep.gguf", "z/c.gguf")
    assert names_in(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name",
    [".m.gguf", ".cache/m.gguf", "m.gguf.part", "m.incomplete", "x/m.gguf.crdownload", "m\n.gguf"],
)
def test_hidden_and_incomplete_files_are_left_out(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    assert names_in(tmp_path) == []


def test_a_file_with_an_unprintable_name_is_left_out(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.gguf")).write_bytes(MODEL)
    assert names_in(tmp_path) == []


def test_a_split_model_is_one_with_the_bytes_of_all_parts(tmp_path: Path) -> None:
    parts = [f"big.Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    write(tmp_path, *parts)
    (model,) = list_model_files(tmp_path)
    assert model.name == "big.Q8_0"
    assert model.paths == tuple(tmp_path / part for part in parts)
    assert model.size == 3 * len(MODEL)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_split_model_with_a_missing_part_is_left_out(tmp_path: Path, missing: int) -> None:
    write(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    (tmp_path / f"m-0000{missing}-of-00002.gguf").unlink()
    assert names_in(tmp_path) == []


def test_a_name_that_two_models_could_have_is_given_to_neither(tmp_path: Path) -> None:
    """So a name never changes its meaning when a file is added."""
    write(tmp_path, "a/m.gguf", "b/m.gguf")
    assert names_in(tmp_path) == ["a/m", "b/m"]
    write(tmp_path, "m.gguf")
    assert names_in(tmp_path) == ["a/m", "b/m", "m.gguf"]


def test_files_that_differ_only_in_the_suffix_keep_it_in_their_names(tmp_path: Path) -> None:
    write(tmp_path, "m.gguf", "m.bin", "m", "n-00001-of-00001.gguf", "n.gguf")
    assert names_in(tmp_path) == ["m", "m.bin", "m.gguf", "n-00001-of-00001.gguf", "n.gguf"]


def test_a_file_named_like_the_path_of_another_keeps_both_names_unique(tmp_path: Path) -> None:
    write(tmp_path, "m.gguf", "m.bin", "m.gguf.bin")
    models = list_model_files(tmp_path)
    assert {model.name: model.path.name for model in models} == {
        "m.bin": "m.bin",
        "m.gguf": "m.gguf",
        "m.gguf.bin": "m.gguf.bin",
    }


def test_links_to_files_and_folders_count_and_loops_end(tmp_path: Path) -> None:
    elsewhere = write(tmp_path, "blobs/deep/0123")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "linked.gguf").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (folder / "broken.gguf").symlink_to(tmp_path / "nowhere")
    (folder / "itself.gguf").symlink_to(folder / "itself.gguf")
    assert names_in(folder) == ["linked.gguf", "loop/linked"]


def test_pipes_and_folders_with_the_names_of_models_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert names_in(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "m.gguf", "closed/n.gguf")
    write(tmp_path, "secret.gguf").chmod(0)
    (tmp_path / "closed").chmod(0)
    try:
        assert names_in(tmp_path) == ["m"]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_each_scan_sees_the_current_files(tmp_path: Path) -> None:
    write(tmp_path, "m.gguf", "x/n.gguf")
    assert names_in(tmp_path) == ["m", "n"]
    shutil.rmtree(tmp_path / "x")
    write(tmp_path, "o.gguf")
    assert names_in(tmp_path) == ["m", "o"]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_path_that_is_not_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "file")
    with pytest.raises(ConfigurationError, match=rf"{name} cannot be read: N"):
        list_model_files(tmp_path / name)
