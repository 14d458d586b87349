"""Lengths of prompts and answers: fixed, or drawn from a distribution."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

LONGEST = 1_000_000
"""Largest length, in words or tokens, whatever the distribution."""


class BadPlan(ValueError):
    """An option, or a file of prompts, is invalid; the message says why."""


class Lengths(Protocol):
    """A distribution of lengths of 1 or more. Its text is for reports."""

    def draw(self, chance: random.Random) -> int:
        """A random length."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    length: int

    def __str__(self) -> str:
        return str(self.length)

    def draw(self, chance: random.Random) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class Uniform:
    """All lengths from `low` to `high`, inclusive, with equal probability."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"

    def draw(self, chance: random.Random) -> int:
        return chance.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal distribution. `sigma` is the standard deviation of the natural logarithm."""

    median: float
    sigma: float
    longest: int = LONGEST

    def __str__(self) -> str:
        limit = f", at most {self.longest}" if self.longest < LONGEST else ""
        return f"about {self.median:g} (lognormal, sigma {self.sigma:g}{limit})"

    def draw(self, chance: random.Random) -> int:
        length = math.exp(math.log(self.median) + self.sigma * chance.gauss())
        return min(max(round(length), 1), self.longest)


def parse_lengths(text: str) -> Lengths:
    """Parse `50`, `uniform:10-200` or `lognormal:MEDIAN,SIGMA[,LONGEST]`. Raises BadPlan."""
    kind, _, rest = text.partition(":")
    try:
        match kind:
            case "uniform":
                low, high = map(int, rest.split("-"))
                if 1 <= low <= high <= LONGEST:
                    return Uniform(low, high)
            case "lognormal":
                median, sigma, *longest = rest.split(",")
                found = Lognormal(float(median), float(sigma), *map(int, longest))
                if 1 <= found.median <= LONGEST and 0 <= found.sigma <= 5 and found.longest >= 1:
                    return found
            case _:
                if 1 <= int(text) <= LONGEST:
                    return Fixed(int(text))
    except (ValueError, TypeError):
        pass  # reported below, like a value out of range
    raise BadPlan(
        f"{text!r} is not a length: write N, uniform:LOW-HIGH (integers from 1 to {LONGEST:,},"
        " LOW ≤ HIGH), or lognormal:MEDIAN,SIGMA[,LONGEST] (MEDIAN ≥ 1, SIGMA from 0 to 5,"
        " LONGEST ≥ 1)"
    )
