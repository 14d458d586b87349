"""The requests of a soak: a seed determines them, and their answers are known."""

from __future__ import annotations

import random
from dataclasses import replace

from scripts.soak.cases import DIALECTS, echoed
from scripts.soak.kinds import KINDS, draw_case, draw_poison
from scripts.soak.server_state import ServerFacts

FACTS = ServerFacts(["echo"], is_echo=True, context=4096, before="User: ", after="\nAssistant:")


def test_the_echo_is_known_to_the_character_and_a_character_that_is_cut_is_left_out() -> None:
    assert echoed("aé", 2, repeats=False) == "a"
    assert echoed("aé", 3, repeats=False) == "aé"
    assert echoed("aé", 100, repeats=False) == "aé"
    assert echoed("aé", 8, repeats=True) == "aéaéa"


def test_a_seed_decides_every_request_and_all_kinds_come() -> None:
    cases = [draw_case(FACTS, number, "1") for number in range(1000)]
    assert [draw_case(FACTS, number, "1") for number in range(1000)] == cases
    assert draw_case(FACTS, 0, "2") != cases[0]
    assert {case.kind for case in cases} == {kind.name for kind in KINDS}
    assert {case.dialect for case in cases} == set(DIALECTS)
    prompts = [case.request.prompt for case in cases]
    assert len(set(prompts)) == len(prompts)  # an answer to another would be seen


def test_the_answers_of_a_model_are_unknown() -> None:
    facts = replace(FACTS, is_echo=False, makes_vectors=False)
    cases = [draw_case(facts, number, "1") for number in range(1000)]
    assert all(case.request.expected_text is None and case.prompt_tokens is None for case in cases)
    assert not any("[[" in case.request.prompt for case in cases)
    assert not any(case.dialect in ("embeddings", "ollama-embed") for case in cases)


def test_a_poison_prompt_makes_its_worker_crash() -> None:
    case = draw_poison(FACTS, 1, random.Random(1))
    assert case.crashes
    assert "[[" in case.request.prompt
