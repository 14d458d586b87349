"""What both servers are asked."""

from __future__ import annotations

import pytest

from scripts.bench.targets import RandomRequests, llama_target, our_target
from scripts.modelling.shapes import SHAPES
from scripts.modelling.vocabulary import make_vocabulary, split
from shared.sampling import SamplingParams


def test_both_servers_are_asked_for_the_same() -> None:
    request = RandomRequests(7).draw(words=3, tokens=5)
    ours, theirs = (target("http://h").body(request) for target in (our_target, llama_target))
    assert ours.pop("num_predict") == theirs.pop("max_tokens") == 5
    assert ours.items() <= theirs.items()
    assert theirs["cache_prompt"] is False
    del ours["prompt"]
    assert SamplingParams().from_fields(ours).seed == request.seed


def test_the_same_seed_asks_the_same_and_no_two_prompts_are_alike() -> None:
    one, other = (
        [requests.draw(10, 1) for _ in range(100)]
        for requests in (RandomRequests(1), RandomRequests(1))
    )
    assert one == other
    assert len({request.prompt for request in one}) == 100


@pytest.mark.parametrize("shape", ["tiny", "small-24m"])
def test_a_word_is_a_token(shape: str) -> None:
    vocabulary = make_vocabulary(SHAPES[shape].vocabulary)
    ranks = {piece.decode(): rank for rank, piece in enumerate(vocabulary.pieces)}
    prompt = " " + RandomRequests(1).draw(200, 1).prompt
    assert len(split(prompt.replace(" ", "\u2581"), ranks)) == 200
