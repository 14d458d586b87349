"""Saved prompts in memory: what is kept, what goes, and which one is of most use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.prompts.cache import PromptCache, SavedPrompt

ROOM = 10**6


def saved(tokens: list[int] | int, prompt_id: int = 0, state: int = 10) -> SavedPrompt:
    """Of these tokens, or of so many, with so many bytes of state."""
    if isinstance(tokens, int):
        tokens = list(range(tokens))
    return SavedPrompt(tokens, bytearray(state), prompt_id)


def other(prompt_id: int = 0, state: int = 100) -> SavedPrompt:
    """Begins, and is begun by, nothing else here."""
    return SavedPrompt([-prompt_id - 1], bytearray(state - 4), prompt_id)


def cache_of(*prompts: SavedPrompt, limit: int = ROOM) -> PromptCache:
    cache = PromptCache(limit)
    for prompt in prompts:
        assert cache.put(prompt) == []
    return cache


def test_the_size_of_a_saved_prompt_is_that_of_its_state_and_its_tokens() -> None:
    assert saved(7, state=100).size == 128
    assert saved(7, state=0).size == 28


# ---------------------------------------------------------------- keeping


def test_a_prompt_is_found_under_its_id() -> None:
    one, two = saved(20, 1), saved(30, 2)
    cache = cache_of(one, two)
    assert cache.get(1) is one
    assert cache.get(2) is two
    assert cache.size == one.size + two.size


def test_an_id_that_nobody_used_is_nothing() -> None:
    assert cache_of(saved(20, 1)).get(2) is None


def test_a_prompt_without_an_id_is_found_under_none() -> None:
    assert cache_of(saved(20)).get(0) is None


def test_what_has_the_same_id_is_replaced() -> None:
    new = saved([7, 8, 9], 1, state=50)
    cache = cache_of(saved(20, 1), new)
    assert cache.get(1) is new
    assert cache.size == new.size
    assert cache.longest(list(range(20))) == (0, None)


def test_to_keep_the_same_prompt_again_changes_nothing_but_its_age() -> None:
    one, two = other(1), other(2)
    cache = cache_of(one, two, one, limit=200)
    assert cache.size == 200
    assert cache.put(other(3)) == [2]
    assert cache.get(1) is one


@pytest.mark.parametrize("length", [20, 25])
def test_a_beginning_without_an_id_is_replaced_by_what_goes_on_from_it(length: int) -> None:
    cache = cache_of(saved(20), saved(length, 1))
    assert cache.size == saved(length).size


def test_all_beginnings_without_an_id_are_replaced() -> None:
    cache = cache_of(saved(20, state=1), saved([*range(10), -1], state=2))
    longest = saved([*range(10), -1, -2])
    cache.put(longest)
    assert cache.size == saved(20, state=1).size + longest.size  # that one has another token 10


def test_a_beginning_with_an_id_stays() -> None:
    named = saved(20, 1)
    cache = cache_of(named, saved(25, 2), saved(30))
    assert cache.get(1) is named
    assert cache.size == sum(saved(length).size for length in (20, 25, 30))


@pytest.mark.parametrize("new", [saved(15), saved([*range(10), -1]), saved([])])
def test_what_the_new_one_does_not_begin_with_stays(new: SavedPrompt) -> None:
    cache = cache_of(saved(20), new)
    assert cache.size == saved(20).size + new.size
    assert cache.holds(list(range(20)))


def test_prompts_without_an_id_do_not_replace_each_other_for_that() -> None:
    cache = cache_of(saved([1, 2]), saved([3, 4]))
    assert cache.holds([1, 2])
    assert cache.holds([3, 4])


# ---------------------------------------------------------------- going


def test_as_much_as_the_limit_is_kept() -> None:
    cache = cache_of(other(1), other(2), limit=200)
    assert cache.size == 200


def test_the_oldest_go_first_and_their_ids_are_told() -> None:
    cache = cache_of(other(1), other(2), other(3), limit=300)
    assert cache.put(other(4, state=101)) == [1, 2]
    assert [cache.get(prompt_id) is None for prompt_id in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert cache.size == 201


def test_what_had_no_id_goes_without_a_word() -> None:
    cache = cache_of(other(0), other(2), limit=200)
    assert cache.put(other(3)) == []
    assert cache.size == 200
    assert not cache.holds(other(0).tokens)


def test_use_makes_a_prompt_the_last_to_go() -> None:
    one, two, three = other(1), other(2), other(3)
    cache = cache_of(one, two, three, limit=300)
    cache.used(one)
    assert cache.put(other(4)) == [2]
    assert cache.put(other(5)) == [3]
    assert cache.put(other(6)) == [1]


def test_to_look_for_a_prompt_is_not_to_use_it() -> None:
    one, two = other(1), other(2)
    cache = cache_of(one, two, limit=200)
    cache.get(1)
    cache.longest(one.tokens)
    assert cache.put(other(3)) == [1]


def test_use_of_one_that_has_gone_brings_nothing_back() -> None:
    one = other(1)
    cache = cache_of(one, limit=100)
    assert cache.put(other(2)) == [1]
    cache.used(one)
    assert cache.get(1) is None
    assert cache.size == 100


def test_what_the_new_one_replaces_makes_room_before_others_go() -> None:
    cache = cache_of(other(1), other(2), limit=200)
    assert cache.put(other(2)) == []
    assert cache.get(1) is not None


def test_one_that_is_larger_than_the_limit_is_not_kept_and_counts_as_gone() -> None:
    cache = PromptCache(100)
    assert cache.put(other(1, state=101)) == [1]
    assert cache.get(1) is None
    assert cache.size == 0
    assert not cache.holds(other(1).tokens)


def test_one_that_is_larger_than_the_limit_does_not_leave_what_its_id_stood_for() -> None:
    cache = cache_of(other(1), limit=100)
    assert cache.put(saved([5], 1, state=101)) == [1]
    assert cache.get(1) is None
    assert not cache.holds(other(1).tokens)


@pytest.mark.parametrize(("limit", "is_off"), [(0, True), (1, False)])
def test_without_room_it_is_off(limit: int, is_off: bool) -> None:
    assert PromptCache(limit).is_off == is_off


# ---------------------------------------------------------------- forgetting


def test_what_is_dropped_is_gone() -> None:
    cache = cache_of(saved(20, 1), saved([5, 6], 2))
    assert cache.drop(1)
    assert cache.get(1) is None
    assert cache.longest(list(range(20))) == (0, None)
    assert cache.size == saved([5, 6]).size


def test_it_tells_when_there_was_nothing_to_drop() -> None:
    cache = cache_of(saved(20, 1), saved([5, 6]))
    assert not cache.drop(2)
    assert not cache.drop(0)
    assert cache.drop(1)
    assert not cache.drop(1)


@pytest.mark.parametrize("prompt_id", [0, 1])
def test_one_of_no_use_is_forgotten(prompt_id: int) -> None:
    useless, useful = saved(20, prompt_id), saved([5, 6], 2)
    cache = cache_of(useless, useful)
    cache.discard(useless)
    cache.discard(useless)
    assert cache.longest(list(range(20))) == (0, None)
    assert cache.size == useful.size
    assert cache.get(1) is None
    assert cache.get(2) is useful


def test_one_that_was_replaced_is_not_forgotten_again() -> None:
    old, new = saved(20, 1), saved(30, 1)
    cache = cache_of(old, new)
    cache.discard(old)
    assert cache.get(1) is new
    assert cache.size == new.size


# ---------------------------------------------------------------- the longest beginning


def test_the_state_that_covers_most_is_found() -> None:
    best = saved([1, 2, 3, 4], 2)
    cache = cache_of(saved([1, 2], 1), best, saved([1, 2, 9, 9, 9, 9], 3), saved([5] * 9, 4))
    assert cache.longest([1, 2, 3, 4, 5]) == (4, best)


def test_a_state_covers_what_it_begins_with_in_common() -> None:
    longer = saved([1, 2, 3, 9, 9], 1)
    assert cache_of(longer).longest([1, 2, 3, 4]) == (3, longer)
    assert cache_of(longer).longest([1, 2]) == (2, longer)


@pytest.mark.parametrize("prompt", [[], [2, 1]])
def test_a_prompt_that_begins_otherwise_has_none(prompt: list[int]) -> None:
    assert cache_of(saved([1, 2, 3], 1)).longest(prompt) == (0, None)


def test_tokens_without_a_state_cover_nothing() -> None:
    with_state = saved([1, 2], 2)
    cache = cache_of(saved([1, 2, 3], 1, state=0), with_state)
    assert cache.longest([1, 2, 3]) == (2, with_state)
    assert not cache.holds([1, 2, 3])


def test_it_holds_what_some_state_covers_to_the_end() -> None:
    cache = cache_of(saved([1, 2, 3], 1))
    assert cache.holds([1, 2])
    assert cache.holds([1, 2, 3])
    assert not cache.holds([1, 2, 3, 4])
    assert not cache.holds([1, 3])


# ---------------------------------------------------------------- the root


def test_the_root_is_found_like_any_other_but_takes_no_room() -> None:
    root = saved(20, state=ROOM)
    cache = PromptCache(0, root)
    assert cache.longest(list(range(15))) == (15, root)
    assert cache.holds(list(range(20)))
    assert cache.size == 0
    assert cache.is_off


def test_the_root_is_used_only_where_nothing_covers_more() -> None:
    root, longer = saved(20), saved(25)
    cache = PromptCache(ROOM, root)
    cache.put(longer)
    assert cache.longest(list(range(30))) == (25, longer)
    assert cache.longest([*range(20), -1])[0] == 20


def test_the_root_stays_whatever_goes() -> None:
    root = saved(20)
    cache = PromptCache(100, root)
    cache.put(saved(25))  # of which the root is a beginning
    cache.used(root)
    cache.discard(root)
    for prompt_id in range(1, 5):
        cache.put(other(prompt_id))
    assert cache.longest(list(range(20))) == (20, root)
    assert cache.size == 100


# ---------------------------------------------------------------- anything


TOKENS = st.lists(st.integers(0, 1), max_size=4)
SAVED = st.builds(
    SavedPrompt, TOKENS, st.integers(0, 30).map(bytearray), st.sampled_from([0, 0, 1, 2, 3])
)
LIMIT = 16 + 30  # the largest fits alone


@given(st.lists(st.tuples(st.sampled_from(["put", "use", "drop"]), SAVED, TOKENS), max_size=25))
@settings(max_examples=200)
def test_in_any_order_of_use_it_is_what_a_list_of_the_last_used_would_be(
    uses: list[tuple[str, SavedPrompt, list[int]]],
) -> None:
    cache, known = PromptCache(LIMIT), list[SavedPrompt]()  # that not used for longest first

    for action, new, tokens in uses:
        if action == "put":
            known = [
                old
                for old in known
                if (old.id == 0 or old.id != new.id)
                and (old.id or new.tokens[: len(old.tokens)] != old.tokens)
            ]
            known.append(new)
            gone = []
            while sum(old.size for old in known) > LIMIT:
                gone.append(known.pop(0).id)
            assert cache.put(new) == [prompt_id for prompt_id in gone if prompt_id]
        elif action == "drop":
            had = [old for old in known if old.id and old.id == new.id]
            known = [old for old in known if old not in had]
            assert cache.drop(new.id) == bool(had)
        elif (found := cache.longest(tokens)[1]) is not None:
            cache.used(found)
            known.append(known.pop(next(i for i, old in enumerate(known) if old is found)))

        assert cache.size == sum(old.size for old in known) <= LIMIT
        for prompt_id in (1, 2, 3):
            expected = next((old for old in known if old.id == prompt_id), None)
            assert cache.get(prompt_id) is expected
        covered = [old for old in known if old.state and old.tokens == tokens[: len(old.tokens)]]
        assert cache.longest(tokens)[0] >= max((len(old.tokens) for old in covered), default=0)
        assert cache.holds(tokens) == (
            not tokens or any(old.state and old.tokens[: len(tokens)] == tokens for old in known)
        )


def test_there_are_never_more_than_so_many_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.prompts.cache.MOST_PROMPTS", 3)
    cache = PromptCache(10**6)
    for prompt_id in (1, 2, 3):
        assert cache.put(SavedPrompt([prompt_id], bytearray(b"x"), prompt_id)) == []
    assert cache.put(SavedPrompt([4], bytearray(b"x"), 4)) == [1]
    assert cache.get(2) is not None


def test_one_that_is_too_large_pushes_nothing_out_but_its_own_id() -> None:
    cache = PromptCache(100)
    assert cache.put(SavedPrompt([1], bytearray(10), 1)) == []
    assert cache.put(SavedPrompt([2], bytearray(10), 2)) == []
    assert cache.put(SavedPrompt([3], bytearray(200))) == []
    assert cache.put(SavedPrompt([4], bytearray(200), 2)) == [2]
    assert cache.get(1) is not None
    assert cache.get(2) is None
    assert cache.size == 14
