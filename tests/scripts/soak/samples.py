"""Samples of a server whose front has a given RSS."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from scripts.soak.monitor import Sample

REST = Sample(0.0, 40.0, 30.0, 20, 1, 2, 60.0, 40.0, 9.0, 4.0, 20.0, 0)


def samples(rss_at: Callable[[int], float]) -> list[Sample]:
    """One a second, with some noise."""
    chance = random.Random(1)
    return [
        replace(REST, at=float(at), front_rss=rss_at(at) + chance.uniform(-2, 2))
        for at in range(200)
    ]
