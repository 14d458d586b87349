"""The estimated memory of models, and a comparison with the real memory of a worker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import gguf
import psutil
import pytest

from shared.errors import ConfigurationError
from tests.helpers.models import build_gemma3_gguf, build_llama_gguf, split_gguf
from tests.helpers.paths import BUNDLED
from tests.helpers.support import model_settings, pool_settings, run, until_ready
from workers.engines.memory_plan import (
    MOST_SLOTS,
    WORKER_BYTES,
    can_repack,
    header_of,
    plan_memory,
    slots_for,
)
from workers.model_files.gguf_header import read_gguf_header
from workers.pool.pool import WorkerPool

KV_BYTES = 2 * 6 * 256 * 2
"""The KV cache of one token of the bundled model: keys and values, 6 layers of 256 f16 numbers."""
TALES = replace(model_settings("llama_cpp", BUNDLED, context=2048, slots=16), repack=False)


def test_only_weights_are_shared_among_workers() -> None:
    one, two = plan_memory(TALES, 1), plan_memory(TALES, 2)

    assert one.weight_bytes == two.weight_bytes == BUNDLED.stat().st_size
    assert one.slot_bytes == two.slot_bytes == 2048 * KV_BYTES
    assert (one.slots, two.slots) == (16, 32)
    assert two.kv_bytes == 2 * one.kv_bytes == 32 * 2048 * KV_BYTES
    assert (one.process_bytes, two.process_bytes) == (WORKER_BYTES, 2 * WORKER_BYTES)
    assert one.total_bytes == one.weight_bytes + one.kv_bytes + WORKER_BYTES
    assert two.total_bytes == two.weight_bytes + two.kv_bytes + 2 * WORKER_BYTES
    assert one.repacked_bytes == two.repacked_bytes == 0


def test_repacked_weights_are_copied_in_each_worker() -> None:
    one, two = (plan_memory(replace(TALES, repack=True), workers) for workers in (1, 2))

    assert (one.repacked_bytes, two.repacked_bytes) == (one.weight_bytes, 2 * one.weight_bytes)
    # The weights of the file are not needed besides them.
    assert one.total_bytes == plan_memory(TALES, 1).total_bytes
    assert two.total_bytes == plan_memory(TALES, 2).total_bytes + one.weight_bytes


def test_all_parts_of_a_split_model_are_counted(tmp_path: Path) -> None:
    whole = build_llama_gguf(tmp_path / "m.gguf")
    folder = tmp_path / "parts"
    folder.mkdir()
    first, *others = split_gguf(whole, folder, parts=3)
    sizes = [path.stat().st_size for path in (first, *others)]
    assert plan_memory(model_settings("llama_cpp", first), 1).weight_bytes == sum(sizes)


def test_layers_that_differ_are_counted_as_wide_as_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv([1, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert plan_memory(model_settings("llama_cpp", path), 1).slot_bytes == 256 * 2 * 2 * 64 * 2


def test_heads_of_any_width_are_counted(tmp_path: Path) -> None:
    path = build_gemma3_gguf(tmp_path / "m.gguf")
    token = read_gguf_header(path).kv_bytes_per_token(2)
    assert plan_memory(model_settings("llama_cpp", path), 1).slot_bytes == 256 * (token or 0)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read: "):
            plan_memory(model_settings("llama_cpp", path), 1)


def test_a_context_is_rounded_up_as_the_engine_does() -> None:
    assert plan_memory(replace(TALES, context=2049), 1).slot_bytes == 2304 * KV_BYTES


def test_smaller_kv_types_take_less_memory() -> None:
    assert plan_memory(replace(TALES, kv_type="q8_0"), 1).slot_bytes == 2048 * KV_BYTES * 17 // 32


def test_the_default_number_of_slots_fits_into_the_memory() -> None:
    slot = plan_memory(TALES, 1).slot_bytes

    assert plan_memory(replace(TALES, slots=None, kv_memory=5 * slot), 1).slots == 5
    assert plan_memory(replace(TALES, slots=None), 1).slots == MOST_SLOTS
    assert plan_memory(replace(TALES, slots=None, engine="ctransformers"), 3).slots == 3


@pytest.mark.parametrize(("memory", "slots"), [(None, 16), (0, 1), (10, 1), (35, 3), (10**9, 16)])
def test_slots_for_a_memory(memory: int | None, slots: int) -> None:
    assert slots_for(memory, 10.0) == slots


def test_only_the_file_of_a_ggml_model_is_counted(gpt2_ggml: Path) -> None:
    model = model_settings("ctransformers", gpt2_ggml, model_type="gpt2")

    plan = plan_memory(model, 1)

    assert (plan.weight_bytes, plan.slot_bytes, plan.slots) == (gpt2_ggml.stat().st_size, 0, 1)
    assert header_of(model) is None
    assert not can_repack(model, None)


def test_the_echo_engine_has_no_weights() -> None:
    plan = plan_memory(model_settings(slots=4), 1)

    assert (plan.weight_bytes, plan.slots, plan.total_bytes) == (0, 4, WORKER_BYTES)


def test_a_broken_header_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(ConfigurationError, match=r"broken\.gguf is not a usable GGUF file"):
        plan_memory(model_settings("llama_cpp", path), 1)


def test_a_worker_takes_about_the_estimated_memory() -> None:
    """Within 25 %, with a model whose KV cache is the largest part."""

    async def taken() -> int:
        async with WorkerPool(pool_settings(TALES)) as pool:
            await until_ready(pool)
            (worker,) = [
                child
                for child in psutil.Process().children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
            return (await asyncio.to_thread(worker.memory_full_info)).uss

    assert run(taken()) == pytest.approx(plan_memory(TALES, 1).total_bytes, rel=0.25)
