"""Random weights."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from scripts.modelling.weights import Noise


def test_no_two_rows_of_a_large_matrix_are_alike() -> None:
    noise = Noise(seed=1)
    rows = noise.array((40_000, 64), 0.5)
    assert rows.std() == pytest.approx(0.5, rel=0.01)
    assert abs(float(rows.mean())) < 0.01
    assert len({hashlib.sha1(np.abs(row).tobytes()).digest() for row in rows}) == len(rows)
