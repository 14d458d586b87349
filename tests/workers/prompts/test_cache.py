"""Saved prompts in memory: which are kept, which are evicted, and which one is found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.prompts.cache import PromptCache, SavedPrompt

ROOM = 10**6


def saved(tokens: list[int] | int, prompt_id: int = 0, state: int = 10) -> SavedPrompt:
    """Make a saved prompt of these tokens, or of this many, with a state of `state` bytes."""
    if isinstance(tokens, int):
        tokens = list(range(tokens))
    return SavedPrompt(tokens, bytearray(state), prompt_id)


def other(prompt_id: int = 0, state: int = 100) -> SavedPrompt:
    """Make a saved prompt that has no prefix in common with any other."""
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


def test_an_unknown_id_is_not_found() -> None:
    assert cache_of(saved(20, 1)).get(2) is None


def test_a_prompt_without_an_id_is_not_found_by_id() -> None:
    assert cache_of(saved(20)).get(0) is None


def test_a_prompt_with_the_same_id_is_replaced() -> None:
    new = saved([7, 8, 9], 1, state=50)
    cache = cache_of(saved(20, 1), new)
    assert cache.get(1) is new
    assert cache.size == new.size
    assert cache.longest(list(range(20))) == (0, None)


def test_putting_the_same_prompt_again_only_makes_it_the_newest() -> None:
    one, two = other(1), other(2)
    cache = cache_of(one, two, one, limit=200)
    assert cache.size == 200
    assert cache.put(other(3)) == [2]
    assert cache.get(1) is one


@pytest.mark.parametrize("length", [20, 25])
def test_a_prefix_without_an_id_is_replaced_by_what_continues_it(length: int) -> None:
    cache = cache_of(saved(20), saved(length, 1))
    assert cache.size == saved(length).size


def test_all_prefixes_without_an_id_are_replaced() -> None:
    cache = cache_of(saved(20, state=1), saved([*range(10), -1], state=2))
    longest = saved([*range(10), -1, -2])
    cache.put(longest)
    assert cache.size == saved(20, state=1).size + longest.size  # that one has another token 10


def test_a_prefix_with_an_id_is_kept() -> None:
    named = saved(20, 1)
    cache = cache_of(named, saved(25, 2), saved(30))
    assert cache.get(1) is named
    assert cache.size == sum(saved(length).size for length in (20, 25, 30))


@pytest.mark.parametrize("new", [saved(15), saved([*range(10), -1]), saved([])])
def test_a_prompt_that_is_not_a_prefix_of_the_new_one_is_kept(new: SavedPrompt) -> None:
    cache = cache_of(saved(20), new)
    assert cache.size == saved(20).size + new.size
    assert cache.holds(list(range(20)))


def test_prompts_without_an_id_do_not_replace_each_other() -> None:
    cache = cache_of(saved([1, 2]), saved([3, 4]))
    assert cache.holds([1, 2])
    assert cache.holds([3, 4])


# ---------------------------------------------------------------- going


def test_prompts_of_exactly_the_limit_are_kept() -> None:
    cache = cache_of(other(1), other(2), limit=200)
    assert cache.size == 200


def test_the_least_recently_used_are_evicted_first_and_their_ids_returned() -> None:
    cache = cache_of(other(1), other(2), other(3), limit=300)
    assert cache.put(other(4, state=101)) == [1, 2]
    assert [cache.get(prompt_id) is None for prompt_id in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert cache.size == 201


def test_evicting_a_prompt_without_an_id_is_not_reported() -> None:
    cache = cache_of(other(0), other(2), limit=200)
    assert cache.put(other(3)) == []
    assert cache.size == 200
    assert not cache.holds(other(0).tokens)


def test_use_makes_a_prompt_the_last_to_be_evicted() -> None:
    one, two, three = other(1), other(2), other(3)
    cache = cache_of(one, two, three, limit=300)
    cache.used(one)
    assert cache.put(other(4)) == [2]
    assert cache.put(other(5)) == [3]
    assert cache.put(other(6)) == [1]


def test_looking_for_a_prompt_is_not_a_use() -> None:
    one, two = other(1), other(2)
    cache = cache_of(one, two, limit=200)
    cache.get(1)
    cache.longest(one.tokens)
    assert cache.put(other(3)) == [1]


def test_using_an_evicted_prompt_changes_nothing() -> None:
    one = other(1)
    cache = cache_of(one, limit=100)
    assert cache.put(other(2)) == [1]
    cache.used(one)
    assert cache.get(1) is None
    assert cache.size == 100


def test_a_replaced_prompt_makes_room_before_others_are_evicted() -> None:
    cache = cache_of(other(1), other(2), limit=200)
    assert cache.put(other(2)) == []
    assert cache.get(1) is not None


def test_a_prompt_larger_than_the_limit_is_not_kept_and_counts_as_evicted() -> None:
    cache = PromptCache(100)
    assert cache.put(other(1, state=101)) == [1]
    assert cache.get(1) is None
    assert cache.size == 0
    assert not cache.holds(other(1).tokens)


def test_a_prompt_larger_than_the_limit_still_replaces_the_one_of_its_id() -> None:
    cache = cache_of(other(1), limit=100)
    assert cache.put(saved([5], 1, state=101)) == [1]
    assert cache.get(1) is None
    assert not cache.holds(other(1).tokens)


@pytest.mark.parametrize(("limit", "is_off"), [(0, True), (1, False)])
def test_without_room_it_is_off(limit: int, is_off: bool) -> None:
    assert PromptCache(limit).is_off == is_off


# ---------------------------------------------------------------- forgetting


def test_a_dropped_prompt_is_removed() -> None:
    cache = cache_of(saved(20, 1), saved([5, 6], 2))
    assert cache.drop(1)
    assert cache.get(1) is None
    assert cache.longest(list(range(20))) == (0, None)
    assert cache.size == saved([5, 6]).size


def test_dropping_an_unknown_id_returns_false() -> None:
    cache = cache_of(saved(20, 1), saved([5, 6]))
    assert not cache.drop(2)
    assert not cache.drop(0)
    assert cache.drop(1)
    assert not cache.drop(1)


@pytest.mark.parametrize("prompt_id", [0, 1])
def test_a_discarded_prompt_is_removed(prompt_id: int) -> None:
    useless, useful = saved(20, prompt_id), saved([5, 6], 2)
    cache = cache_of(useless, useful)
    cache.discard(useless)
    cache.discard(useless)
    assert cache.longest(list(range(20))) == (0, None)
    assert cache.size == useful.size
    assert cache.get(1) is None
    assert cache.get(2) is useful


def test_discarding_a_replaced_prompt_changes_nothing() -> None:
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


def test_a_state_covers_the_common_prefix() -> None:
    longer = saved([1, 2, 3, 9, 9], 1)
    assert cache_of(longer).longest([1, 2, 3, 4]) == (3, longer)
    assert cache_of(longer).longest([1, 2]) == (2, longer)


@pytest.mark.parametrize("prompt", [[], [2, 1]])
def test_a_prompt_with_another_first_token_has_no_state(prompt: list[int]) -> None:
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


def test_the_root_is_found_like_any_other_but_does_not_count() -> None:
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


def test_the_root_is_never_evicted() -> None:
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
def test_in_any_order_of_use_it_equals_a_simple_list_in_order_of_use(
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


def test_there_are_never_more_than_the_most_prompts_however_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.prompts.cache.MOST_PROMPTS", 3)
    cache = PromptCache(10**6)
    for prompt_id in (1, 2, 3):
        assert cache.put(SavedPrompt([prompt_id], bytearray(b"x"), prompt_id)) == []
    assert cache.put(SavedPrompt([4], bytearray(b"x"), 4)) == [1]
    assert cache.get(2) is not None


def test_a_prompt_that_is_too_large_evicts_only_the_one_of_its_id() -> None:
    cache = PromptCache(100)
    assert cache.put(SavedPrompt([1], bytearray(10), 1)) == []
    assert cache.put(SavedPrompt([2], bytearray(10), 2)) == []
    assert cache.put(SavedPrompt([3], bytearray(200))) == []
    assert cache.put(SavedPrompt([4], bytearray(200), 2)) == [2]
    assert cache.get(1) is not None
    assert cache.get(2) is None
    assert cache.size == 14
