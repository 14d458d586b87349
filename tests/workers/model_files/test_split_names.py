"""Names of the parts of a split GGUF."""

from __future__ import annotations

import pytest

from workers.model_files.split_names import parts_of, whole_name

PARTS = tuple(f"x/m-0000{part}-of-00003.gguf" for part in (1, 2, 3))


@pytest.mark.parametrize("name", PARTS)
def test_each_part_names_all_of_them(name: str) -> None:
    assert parts_of(name) == PARTS
    assert whole_name(name) == "x/m.gguf"


@pytest.mark.parametrize(
    "name",
    [
        "m.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-1-of-3.gguf",
        "m-00001-of-00003.bin",
        "-00001-of-00003.gguf",
    ],
)
def test_any_other_file_is_alone(name: str) -> None:
    assert parts_of(name) == (name,)
    assert whole_name(name) == name
