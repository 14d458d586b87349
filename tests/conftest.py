"""Fixtures for all tests: small models, built once, and a hypothesis profile."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import cores, models

hypothesis.settings.register_profile(
    "tokenflume", deadline=None, database=None, max_examples=50, derandomize=True
)
hypothesis.settings.load_profile("tokenflume")


def pytest_configure(config: pytest.Config) -> None:
    cores.register(config)


@pytest.fixture(scope="session")
def both_cores() -> None:
    """The test has all CPUs to itself, at least two; see tests/helpers/cores.py."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this test needs two CPUs")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def llama_gguf(model_folder: Path) -> Path:
    """A llama GGUF whose text has characters of two to four bytes, and ends now and then."""
    return models.build_llama_gguf(model_folder / "llama.gguf", end=4.0)


@pytest.fixture(scope="session")
def llama_ggjt(model_folder: Path) -> Path:
    return models.build_llama_ggjt(model_folder / "llama.ggjt", end=4.0)


@pytest.fixture(scope="session")
def gpt2_ggml(model_folder: Path) -> Path:
    return models.build_gpt2_ggml(model_folder / "gpt2.bin", end=4.0)
