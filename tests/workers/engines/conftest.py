"""The settings of small models, by a name for each kind of engine and file."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.settings import ModelSettings
from tests.helpers.support import model_settings


@pytest.fixture(scope="session")
def small_models(llama_gguf: Path, llama_ggjt: Path, gpt2_ggml: Path) -> dict[str, ModelSettings]:
    return {
        "echo": model_settings(),
        "llama-cpp": model_settings("llama_cpp", llama_gguf),
        "llama-gguf": model_settings("ctransformers", llama_gguf),
        "llama-ggjt": model_settings("ctransformers", llama_ggjt, model_type="llama"),
        "gpt2-ggml": model_settings("ctransformers", gpt2_ggml, model_type="gpt2"),
    }
