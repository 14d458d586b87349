"""A scrape of /metrics as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Scrape:
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]
    """By name and labels."""
    types: Mapping[str, str]
    """Of the families, by their names in the text."""

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples of the name that have these labels, whatever others they have."""
        wanted = set(labels.items())
        return sum(value for (n, has), value in self.samples.items() if n == name and wanted <= has)

    def labels(self, name: str, label: str) -> set[str]:
        """The values of a label in the samples of that name."""
        return {dict(has)[label] for n, has in self.samples if n == name}

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    def requests(self, **labels: str) -> float:
        return self.sum("tokenflume_requests_total", **labels)


def parse(text: str) -> Scrape:
    """Fails if a sample is there twice."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    types = {}
    for family in text_string_to_metric_families(text):
        types[family.name + "_total" * (family.type == "counter")] = family.type
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples, key
            samples[key] = sample.value
    return Scrape(samples, types)


def scrape(client: httpx.Client) -> Scrape:
    response = client.get("/metrics")
    assert response.status_code == 200, response.text
    return parse(response.text)


def scrape_until(client: httpx.Client, condition: Callable[[Scrape], bool]) -> Scrape:
    """Workers send their steps every half second."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = scrape(client)
        if condition(found):
            return found
        few = {key: value for key, value in found.samples.items() if "_bucket" not in key[0]}
        assert time.monotonic() < deadline, few
        time.sleep(0.05)
