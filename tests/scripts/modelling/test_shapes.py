"""The preset shapes."""

from __future__ import annotations

from scripts.modelling.shapes import SHAPES, TYPES, check_shape, parameters


def test_the_presets_are_as_large_as_their_names_say() -> None:
    millions = {
        name: round(parameters(shape) / 1e6) for name, shape in SHAPES.items() if name != "tiny"
    }
    assert millions == {
        "small-24m": 24,
        "tinyllama-1.1b": 1100,
        "llama-7b": 6738,
        "mistral-7b": 7242,
    }


def test_the_large_presets_can_have_every_type() -> None:
    for name, shape in SHAPES.items():
        for kind in TYPES:
            if (name, kind) != ("tiny", "Q4_K_M"):
                check_shape(shape, kind)
