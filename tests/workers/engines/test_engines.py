"""One contract for every engine, on real models: each test runs on all of them."""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError, ContextTooShort, EngineFailed, InvalidRequest
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import ModelSettings
from tests.helpers import models
from tests.helpers.support import model_settings
from workers.child.tokenize import tokens_of
from workers.engines.base import Engine, Feed
from workers.engines.choice import choose_engine
from workers.engines.ctransformers import PART, split_text
from workers.engines.table import load_engine

GREEDY = SamplingParams(temp=0.0, repeat_penalty=1.0, ignore_eos=True)
SAMPLED = SamplingParams(temp=1.0, repeat_penalty=1.0, top_k=0, top_p=1.0, seed=4, ignore_eos=True)
PROMPT = "Once upon a time, é語🙂 said the Wolf."


@pytest.fixture(
    scope="module", params=["echo", "llama-cpp", "llama-gguf", "llama-ggjt", "gpt2-ggml"]
)
def settings(
    request: pytest.FixtureRequest, small_models: dict[str, ModelSettings]
) -> ModelSettings:
    return small_models[request.param]


@pytest.fixture(scope="module")
def engine(settings: ModelSettings) -> Engine:
    return load_engine(settings, threads=1)


def prefill(engine: Engine, prompt: list[int], chunk: int) -> None:
    for start in range(0, len(prompt), chunk):
        tokens = prompt[start : start + chunk]
        engine.decode([Feed(0, tokens, start, start + chunk >= len(prompt))])


def generate(
    engine: Engine, text: str, params: SamplingParams, count: int = 24, chunk: int = 8
) -> list[int]:
    """Generate after `text` in slot 0, up to an end token, which is not returned."""
    prompt = engine.tokenize(text)
    sampler = engine.sampler(params, prompt)
    prefill(engine, prompt, chunk)
    tokens: list[int] = []
    while len(tokens) < count:
        token = engine.sample(0, sampler)
        if engine.is_end(token):
            break
        tokens.append(token)
        engine.decode([Feed(0, [token], len(prompt) + len(tokens) - 1, True)])
    engine.truncate(0, 0)
    return tokens


def test_the_info_describes_what_was_loaded(engine: Engine, settings: ModelSettings) -> None:
    info = engine.info
    assert info.engine == settings.engine
    assert info.slots >= 1
    assert info.context == 256
    assert 1 <= info.batch <= engine.max_batch
    assert info.vocabulary > 256


def test_a_text_survives_tokens_and_pieces(engine: Engine) -> None:
    tokens = engine.tokenize(PROMPT)
    assert all(0 <= token < engine.info.vocabulary for token in tokens)
    assert b"".join(map(engine.piece, tokens)).decode().strip() == PROMPT


def test_greedy_text_is_the_same_every_time_and_whatever_ran_before(engine: Engine) -> None:
    first = generate(engine, PROMPT, GREEDY)
    generate(engine, "something else", GREEDY)
    assert first
    assert generate(engine, PROMPT, GREEDY) == first


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_chunk_size_never_changes_the_text(engine: Engine, chunk: int) -> None:
    assert generate(engine, PROMPT, GREEDY, chunk=chunk) == generate(engine, PROMPT, GREEDY)


def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    params = SamplingParams(seed=2**63, temp=1.0)
    assert generate(engine, PROMPT, params) == generate(engine, PROMPT, params)


def test_a_sequence_that_is_removed_during_prefill_leaves_no_trace(engine: Engine) -> None:
    expected = generate(engine, PROMPT, GREEDY)
    prompt = engine.tokenize("a prompt that is cancelled while it is processed")
    engine.decode([Feed(0, prompt[:5], 0, False)])
    engine.truncate(0, 0)
    assert generate(engine, PROMPT, GREEDY) == expected


def test_a_sequence_may_continue_behind_the_prefix_of_another_one(engine: Engine) -> None:
    expected = generate(engine, PROMPT, GREEDY)
    prompt = engine.tokenize(PROMPT)
    other = [*prompt[:9], *prompt[2:12]]
    prefill(engine, other, 8)
    assert engine.truncate(0, 9) == 9
    sampler = engine.sampler(GREEDY, prompt)
    engine.decode([Feed(0, prompt[9:], 9, True)])
    assert engine.sample(0, sampler) == expected[0]
    assert engine.truncate(0, 10**6) == len(prompt)
    assert engine.truncate(0, 0) == 0


def test_a_saved_state_can_be_continued_in_any_slot(engine: Engine) -> None:
    if not engine.state_format:
        with pytest.raises(EngineFailed, match="cannot save"):
            engine.save(0)
        with pytest.raises(EngineFailed, match="cannot load"):
            engine.load(0, bytearray(b"x"))
        return
    expected = generate(engine, PROMPT, GREEDY)
    prompt = engine.tokenize(PROMPT)
    engine.decode([Feed(0, prompt[:-1], 0, False)])
    state = engine.save(0)
    engine.truncate(0, 0)
    last = engine.info.slots - 1
    for slot in {0, last}:
        engine.decode([Feed(slot, prompt[3:8], 0, False)])  # replaced by the state
        engine.load(slot, state)
        sampler = engine.sampler(GREEDY, prompt)
        engine.decode([Feed(slot, prompt[-1:], len(prompt) - 1, True)])
        assert engine.sample(slot, sampler) == expected[0]
        assert engine.truncate(slot, 5) == 5
        engine.truncate(slot, 0)


def test_only_the_start_of_a_sequence_has_a_bos(engine: Engine) -> None:
    whole, rest = engine.tokenize("The Wolf"), engine.tokenize("The Wolf", is_start=False)
    assert whole[-len(rest) :] == rest
    assert len(whole) - len(rest) in (0, 1)


def pieces(engine: Engine, tokens: list[int]) -> str:
    return b"".join(engine.piece(token, shows_control=True) for token in tokens).decode()


@pytest.mark.parametrize("rest", ["lf", " lf", "\n\nlf", "", "é", "  ", "a", "_"])
def test_a_text_that_continues_another_gets_no_space_before_it(engine: Engine, rest: str) -> None:
    first = engine.tokenize("The Wo", is_start=False)
    tokens = first + engine.tokenize(rest, is_start=False, continues=True)
    assert pieces(engine, tokens).removeprefix(" ") == f"The Wo{rest}"


def test_a_long_text_that_continues_another_is_refused_too(engine: Engine) -> None:
    if engine.info.engine == "echo":
        return
    with pytest.raises(ContextTooShort, match="256"):
        engine.tokenize("a" * 1_000_000, is_start=False, continues=True)


def test_control_tokens_have_names_that_can_be_shown(engine: Engine) -> None:
    card = engine.info.card
    for name in card.control:
        (token,) = (
            token
            for token in engine.tokenize(f"a{name}b")[1:]
            if engine.piece(token, shows_control=True) == name.encode()
        )
        assert engine.piece(token) == b""
    assert {card.bos, card.eos} - {""} <= set(card.control)


def test_a_prompt_that_begins_with_a_bos_gets_no_second_one(engine: Engine) -> None:
    bos = engine.info.card.bos
    if bos:
        tokens = engine.tokenize(f"{bos}The Wolf")
        assert tokens == engine.tokenize("The Wolf")
        assert engine.tokenize(f"{bos}{bos}The Wolf") == [tokens[0], *tokens]


@given(data=st.data())
def test_a_control_tokens_name_across_a_cut_is_text(engine: Engine, data: st.DataObject) -> None:
    names = engine.info.card.control or ("<|endoftext|>",)
    words = st.sampled_from([*names, "<", "s>", "|>", "a", " ", "\n", "é", "Wolf"])
    text = "a" + "".join(data.draw(st.lists(words, max_size=8)))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6))))
    prompt = Prompt(text, cuts)
    expected = [
        name
        for part in prompt.parts
        for name in re.findall("|".join(map(re.escape, engine.info.card.control)) or "$.", part)
    ]
    tokens = tokens_of(prompt, engine, is_start=False)
    shown = [engine.piece(token, shows_control=True).decode(errors="replace") for token in tokens]
    assert [name for name in shown if name in engine.info.card.control] == expected
    assert pieces(engine, tokens).replace(" ", "") == text.replace(" ", "")


def test_a_vector_does_not_depend_on_the_chunks_and_changes_no_slot(
    engine: Engine,
) -> None:
    if not engine.info.embedding:
        with pytest.raises(EngineFailed, match="no embeddings"):
            engine.embed([1], 0, is_last=True)
        return
    expected = generate(engine, PROMPT, GREEDY)
    tokens = engine.tokenize(PROMPT)
    engine.decode([Feed(0, tokens[:-1], 0, False)])

    whole = engine.embed(tokens, 0, is_last=True)
    assert engine.embed(tokens[:5], 0, is_last=False) == b""
    assert engine.embed(tokens[5:7], 5, is_last=False) == b""
    parts = engine.embed(tokens[7:], 7, is_last=True)
    other = engine.embed(engine.tokenize("Something else."), 0, is_last=True)

    vector = struct.unpack(f"<{engine.info.embedding}f", whole)
    assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-5)
    assert struct.unpack(f"<{engine.info.embedding}f", parts) == pytest.approx(vector, abs=1e-3)
    assert other != whole
    sampler = engine.sampler(GREEDY, tokens)
    engine.decode([Feed(0, tokens[-1:], len(tokens) - 1, True)])
    assert engine.sample(0, sampler) == expected[0]
    engine.truncate(0, 0)


def test_log_probabilities_are_refused_by_an_engine_without_them(engine: Engine) -> None:
    if "logprobs" not in engine.info.sampling:
        with pytest.raises(EngineFailed, match=f"{engine.info.engine} engine has no log prob"):
            engine.logprobs(0, 1, 1)


def test_the_card_describes_the_file(engine: Engine, settings: ModelSettings) -> None:
    card = engine.info.card
    if settings.path is not None:
        assert card.size == settings.path.stat().st_size
    if settings.path is not None and settings.path.suffix == ".gguf":
        assert (card.name, card.quantization) == ("Random llama", "Q8_0")
        assert (card.trained_context, card.bos, card.eos) == (256, "<s>", "</s>")
        assert card.parameters == 164_160


def test_loading_reports_its_progress(settings: ModelSettings) -> None:
    told: list[float] = []
    load_engine(settings, 1, told.append)
    assert told == sorted(told)
    assert all(0 <= share <= 1 for share in told)
    if settings.engine != "ctransformers":
        assert told[-1] == 1


def test_a_prompt_longer_than_any_context_is_refused_without_work(engine: Engine) -> None:
    if engine.info.engine == "echo":
        assert len(engine.tokenize("a" * 1_000_000)) == 1_000_000  # the scheduler refuses it
        return
    with pytest.raises(ContextTooShort, match="256"):
        engine.tokenize("a" * 1_000_000)


def test_the_end_token_never_comes_with_ignore_eos(engine: Engine) -> None:
    params = SamplingParams(temp=2.0, seed=5, ignore_eos=True, top_k=0, top_p=1.0)
    assert len(generate(engine, PROMPT, params, count=150)) == 150


# Tests that need a model.


@pytest.fixture(scope="module", params=["llama-cpp", "llama-gguf", "llama-ggjt", "gpt2-ggml"])
def model(
    request: pytest.FixtureRequest, llama_gguf: Path, llama_ggjt: Path, gpt2_ggml: Path
) -> Engine:
    chosen = {
        "llama-cpp": model_settings("llama_cpp", llama_gguf),
        "llama-gguf": model_settings("ctransformers", llama_gguf),
        "llama-ggjt": model_settings("ctransformers", llama_ggjt, model_type="llama"),
        "gpt2-ggml": model_settings("ctransformers", gpt2_ggml, model_type="gpt2"),
    }[request.param]
    return load_engine(chosen, threads=1)


def test_another_seed_gives_another_text_and_no_seed_a_new_one(model: Engine) -> None:
    params = replace(SAMPLED, seed=1)
    assert generate(model, PROMPT, params) != generate(model, PROMPT, replace(params, seed=2))
    unseeded = replace(params, seed=None)
    assert generate(model, PROMPT, unseeded) != generate(model, PROMPT, unseeded)


def test_each_token_has_a_draw_of_its_own(model: Engine) -> None:
    """The library seeds its generator anew for each token. With the same seed for all tokens, each
    would be the same quantile of its distribution, and most tokens would repeat."""
    params = replace(SAMPLED, seed=3)
    prompt = model.tokenize(PROMPT)
    prefill(model, prompt, 8)
    sampler = model.sampler(params, prompt)
    draws = {model.sample(0, sampler) for _ in range(50)}  # from one distribution
    model.truncate(0, 0)
    assert len(draws) > 5


def test_top_k_of_one_is_greedy(model: Engine) -> None:
    params = replace(SAMPLED, top_k=1)
    assert generate(model, PROMPT, params) == generate(model, PROMPT, GREEDY)


def test_a_tiny_top_p_is_greedy(model: Engine) -> None:
    params = replace(SAMPLED, top_p=1e-6)
    assert generate(model, PROMPT, params) == generate(model, PROMPT, GREEDY)


@pytest.mark.parametrize("top_k", [0, 10**6])
def test_a_top_k_of_0_or_above_the_vocabulary_keeps_all_tokens(model: Engine, top_k: int) -> None:
    """The library would read past the end of its candidates."""
    params = replace(SAMPLED, top_k=top_k)
    if model.info.engine == "llama_cpp" and top_k == 0:
        # llama.cpp leaves the candidates unsorted then, so the same draw is another token.
        assert len(generate(model, PROMPT, params)) == 24
        return
    assert generate(model, PROMPT, params) == generate(model, PROMPT, replace(params, top_k=512))


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_is_not(model: Engine) -> None:
    cold = replace(SAMPLED, temp=1e-3)
    hot = replace(SAMPLED, temp=5.0)
    greedy = generate(model, PROMPT, GREEDY)
    assert generate(model, PROMPT, cold) == greedy
    assert generate(model, PROMPT, hot) != greedy


def test_the_repeat_penalty_applies_to_the_last_n_tokens(model: Engine) -> None:
    """A huge penalty makes the last N tokens all different; N = 0 turns it off."""
    params = replace(GREEDY, repeat_penalty=1000.0)
    tokens = generate(model, PROMPT, replace(params, repeat_last_n=16), count=64)
    assert all(len(set(tokens[i : i + 16])) == 16 for i in range(len(tokens) - 16))
    off = generate(model, PROMPT, replace(params, repeat_last_n=0), count=64)
    assert off == generate(model, PROMPT, GREEDY, count=64)


def test_the_penalty_sees_the_prompt(model: Engine) -> None:
    (favourite, *_) = generate(model, PROMPT, GREEDY)
    prompt = model.tokenize(PROMPT)
    prefill(model, prompt, 8)
    penalised = replace(GREEDY, repeat_penalty=1000.0, repeat_last_n=64)
    sampler = model.sampler(penalised, [*prompt, favourite])
    assert model.sample(0, sampler) != favourite
    model.truncate(0, 0)


def test_a_model_that_ends_at_once_ends(tmp_path: Path) -> None:
    path = models.build_llama_gguf(tmp_path / "ends.gguf", end=100.0)
    engine = load_engine(model_settings("ctransformers", path), threads=1)
    assert generate(engine, PROMPT, replace(GREEDY, ignore_eos=False)) == []
    assert len(generate(engine, PROMPT, GREEDY, count=20)) == 20


def test_a_text_without_tokens_is_refused(gpt2_ggml: Path) -> None:
    engine = load_engine(model_settings("echo"), threads=1)
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.tokenize("")


def test_a_long_text_of_multibyte_characters_does_not_overflow(model: Engine) -> None:
    """The library's own wrapper has room for one token per character. These take four."""
    tokens = model.tokenize("🜁" * 60)
    assert len(tokens) >= 240


@pytest.mark.parametrize("text", ["a" * 3000, "word " * 700, " " * 2500, "日本" * 600, "x\n" * 900])
def test_cutting_a_long_text_loses_nothing_of_it(text: str) -> None:
    parts = split_text(text.encode())
    assert b"".join(parts) == text.encode()
    assert all(len(part) <= PART and part.decode() for part in parts)


def test_cutting_a_long_text_changes_no_token(
    gpt2_ggml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(model_settings("ctransformers", gpt2_ggml, model_type="gpt2"), threads=1)
    text = "It was a dark, stormy night; the rain   fell in 1830 torrents. " * 5
    whole = engine.tokenize(text)
    monkeypatch.setattr("workers.engines.ctransformers.PART", 20)
    assert engine.tokenize(text) == whole


# Loading.


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_ctransformers_refuses_kv_types_that_it_does_not_support(
    llama_gguf: Path, kv_type: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"no {kv_type}"):
        load_engine(model_settings("ctransformers", llama_gguf, kv_type=kv_type), threads=1)


def test_a_file_that_the_library_refuses_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigurationError, match=r"broken\.gguf"):
        load_engine(model_settings("ctransformers", path), threads=1)


def test_the_engine_is_chosen_by_the_file(
    llama_gguf: Path, llama_ggjt: Path, gpt2_ggml: Path, tmp_path: Path
) -> None:
    assert choose_engine(llama_gguf, None) == "llama_cpp"
    assert choose_engine(llama_ggjt, "llama") == "ctransformers"
    assert choose_engine(gpt2_ggml, "gpt2") == "ctransformers"
    with pytest.raises(ConfigurationError, match="--model-type"):
        choose_engine(gpt2_ggml, None)
    with pytest.raises(ConfigurationError, match="is a directory"):
        choose_engine(tmp_path, None)
    with pytest.raises(ConfigurationError, match="no such file"):
        choose_engine(tmp_path / "none.gguf", None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        choose_engine(tmp_path / "pipe", None)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match="is empty"):
        choose_engine(tmp_path / "empty", None)


def test_without_llama_cpp_ctransformers_runs_a_gguf_or_the_error_says_what_to_install(
    llama_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine(llama_gguf, None) == "ctransformers"
    path = tmp_path / "qwen.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigurationError, match=r"qwen2 .* pip install 'tokenflume\[llama\]'"):
        choose_engine(path, None)


def test_ctransformers_refuses_more_than_one_slot(llama_gguf: Path) -> None:
    with pytest.raises(ConfigurationError, match="--slots must be 1"):
        load_engine(model_settings("ctransformers", llama_gguf, slots=4), threads=1)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.02, 0.1, 0.34, 0.6, 0.9])
def test_a_truncated_file_is_refused_or_crashes_only_the_loading_process(
    llama_gguf: Path, tmp_path: Path, share: float
) -> None:
    """The library may abort, so it runs in a process of its own here, as in a worker."""
    path = tmp_path / "cut.gguf"
    whole = llama_gguf.read_bytes()
    path.write_bytes(whole[: max(4, int(len(whole) * share))])
    code = (
        "import sys; from pathlib import Path; from tests.helpers.support import model_settings\n"
        "from workers.engines.table import load_engine\n"
        "from shared.errors import ConfigurationError\n"
        "try: load_engine(model_settings('ctransformers', Path(sys.argv[1])), 1)\n"
        "except ConfigurationError as error: print(error); sys.exit(3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", code, path], env=environment, check=False,
                           capture_output=True, timeout=30)  # fmt: skip
    assert child.returncode == 3 or child.returncode < 0
    if child.returncode == 3:
        assert b"cut.gguf" in child.stdout
