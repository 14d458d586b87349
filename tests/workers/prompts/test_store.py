"""The folder of saved prompts: what one worker writes, another reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Cancel, PromptDropped, PromptSaved
from tests.helpers.paths import ROOT
from tests.helpers.support import TIMEOUT_S
from workers.prompts.cache import SavedPrompt
from workers.prompts.files import (
    Identity,
    ids_in,
    path_of,
    prompts_in,
    read_prompt,
    write_prompt,
)
from workers.prompts.store import PromptStore, trim

ROOM = 10**9
IDENTITY = Identity("a model", "an engine")
LONG_AGO = 1.5e9

Open = Callable[..., PromptStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """Opens stores of the folder, all of which end with the test."""
    stores: list[PromptStore] = []

    def open_one(limit: int = ROOM, identity: Identity = IDENTITY) -> PromptStore:
        stores.append(PromptStore(tmp_path, limit, identity))
        return stores[-1]

    before = set(threading.enumerate())
    yield open_one
    for store in stores:
        store.close(TIMEOUT_S)
    assert set(threading.enumerate()) <= before


def saved(prompt_id: int, size: int = 1000) -> SavedPrompt:
    return SavedPrompt([1, 2, prompt_id], bytearray([prompt_id % 256]) * size, prompt_id)


def written(store: PromptStore, *prompts: SavedPrompt) -> None:
    """Have the prompts written, and close the store, which waits for that."""
    store.keep_up(prompts, [])
    store.close(TIMEOUT_S)


def make_old(path: Path, after: float = 0.0) -> None:
    """Set the time of the last use. The time of the last access does not count."""
    os.utime(path, (LONG_AGO - after, LONG_AGO + after))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------- reading


def test_what_one_worker_writes_another_reads(open_store: Open) -> None:
    written(open_store(), saved(7), saved(8))
    another = open_store()
    assert another.read(7) == saved(7)
    assert another.read(8) == saved(8)


def test_a_prompt_is_read_for_every_request_until_it_is_in_memory(open_store: Open) -> None:
    written(open_store(), saved(7))
    store = open_store()
    for _ in range(2):
        assert store.must_read(7)
        assert store.read(7) == saved(7)
    store.keep_up([], [PromptSaved(7, 3, 1012)])
    assert not store.must_read(7)
    assert store.read(7) is None


def test_several_threads_may_read_at_once(open_store: Open) -> None:
    written(open_store(), *(saved(prompt_id, 2**18) for prompt_id in (7, 8, 9)))
    store = open_store()
    found: list[SavedPrompt | None] = []

    def read_all() -> None:
        found.extend(store.read(prompt_id) for prompt_id in (7, 8, 9))

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(found) == 12
    for prompt_id in (7, 8, 9):
        assert found.count(saved(prompt_id, 2**18)) == 4


def test_a_prompt_that_was_never_saved_is_not_found_and_not_logged(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_store().read(7) is None
    assert caplog.records == []


def test_a_request_without_an_id_reads_nothing(open_store: Open, tmp_path: Path) -> None:
    write_prompt(path_of(tmp_path, 0), saved(0), IDENTITY)
    store = open_store()
    assert not store.must_read(0)
    assert store.read(0) is None


def test_what_is_in_memory_is_not_read(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(open_store(), saved(7), saved(8))
    store = open_store()
    store.keep_up([], [PromptSaved(7, 3, 1012)])
    assert store.in_memory == {7}
    assert store.read(8) == saved(8)
    damage(path_of(tmp_path, 7))  # which a read would notice
    assert store.read(7) is None
    assert caplog.records == []


def test_what_was_dropped_from_memory_is_read_again(open_store: Open) -> None:
    written(open_store(), saved(7))
    store = open_store()
    store.keep_up([], [PromptSaved(7, 3, 1012), PromptSaved(8, 3, 1012)])
    store.keep_up([], [PromptDropped(7)])
    store.keep_up([], [PromptDropped(7)])
    assert store.in_memory == {8}
    assert store.read(7) == saved(7)


def test_if_a_prompt_was_saved_and_dropped_in_the_same_step_the_last_event_counts(
    open_store: Open,
) -> None:
    store = open_store()
    store.keep_up([], iter([PromptSaved(7, 3, 1012), PromptDropped(7), Cancel(7)]))
    store.keep_up([], iter([PromptDropped(8), PromptSaved(8, 3, 1012)]))
    assert store.in_memory == {8}


def test_a_damaged_file_costs_a_warning_and_is_deleted(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(open_store(), saved(7), saved(8))
    damage(path_of(tmp_path, 7))
    store = open_store()

    assert store.read(7) is None

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "prompt 7 is processed again, its file deleted" in record.getMessage()
    store.close(TIMEOUT_S)
    assert list(ids_in(tmp_path)) == [8]


@pytest.mark.parametrize("another", [Identity("other", "an engine"), Identity("a model", "other")])
def test_what_another_model_or_engine_has_saved_costs_a_warning_and_stays(
    open_store: Open, another: Identity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(open_store(), saved(7))
    store = open_store(identity=another)

    assert store.read(7) is None

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "prompt 7 is processed again: " in record.getMessage()
    store.close(TIMEOUT_S)
    assert read_prompt(path_of(tmp_path, 7), IDENTITY, 7) == saved(7)


def test_what_cannot_be_read_costs_a_warning(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path_of(tmp_path, 7).mkdir()
    store = open_store()
    assert store.read(7) is None
    assert "prompt 7 is processed again" in caplog.text
    store.close(TIMEOUT_S)
    assert path_of(tmp_path, 7).is_dir()


# ---------------------------------------------------------------- writing


def test_a_file_says_whose_it_is(open_store: Open, tmp_path: Path) -> None:
    written(open_store(), saved(7))
    assert read_prompt(path_of(tmp_path, 7), IDENTITY, 7) == saved(7)


def test_a_prompt_that_is_saved_again_takes_the_place_of_the_old(open_store: Open) -> None:
    new = SavedPrompt([5], bytearray(b"new"), 7)
    written(open_store(), saved(7), new)
    assert open_store().read(7) == new


def test_closing_waits_until_all_is_written(open_store: Open, tmp_path: Path) -> None:
    prompts = [saved(prompt_id, 2**20) for prompt_id in range(1, 31)]
    written(open_store(), *prompts)
    assert sorted(ids_in(tmp_path)) == list(range(1, 31))


def test_a_process_that_ends_without_closing_is_not_held_up(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from workers.prompts.files import Identity
        from workers.prompts.store import PromptStore
        PromptStore(Path(sys.argv[1]), 5, Identity("m", "e"))
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=TIMEOUT_S)


class BlockedTokens:
    """Tokens that cannot be written until `may_go_on` is set, as on a slow disk."""

    def __init__(self) -> None:
        self.is_asked, self.may_go_on = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[int]:
        self.is_asked.set()
        assert self.may_go_on.wait(TIMEOUT_S)
        return iter([1, 2, 3])

    def __len__(self) -> int:
        return 3


def test_reads_and_deletes_do_not_wait_for_a_slow_write(open_store: Open, tmp_path: Path) -> None:
    written(open_store(), saved(7))
    store, tokens = open_store(), BlockedTokens()
    slow = SavedPrompt(tokens, bytearray(9), 8)  # type: ignore[arg-type]

    store.keep_up([slow, saved(9)], [])
    assert tokens.is_asked.wait(TIMEOUT_S)
    store.delete(9)
    assert store.read(7) == saved(7)
    store.close(0.01)
    assert list(ids_in(tmp_path)) == [7]

    tokens.may_go_on.set()
    store.close(TIMEOUT_S)
    assert sorted(ids_in(tmp_path)) == [7, 8]


def test_what_was_deleted_after_it_was_saved_is_gone(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.keep_up([saved(7, 2**20), saved(8)], [])
    store.delete(7)
    store.close(TIMEOUT_S)
    assert list(ids_in(tmp_path)) == [8]


def test_what_was_saved_after_it_was_deleted_is_there(open_store: Open) -> None:
    store = open_store()
    store.delete(7)
    written(store, saved(7))
    assert open_store().read(7) == saved(7)


def test_deleting_a_missing_file_is_not_logged(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.delete(7)
    store.close(TIMEOUT_S)
    assert caplog.records == []


def test_a_folder_that_vanished_costs_a_warning_and_is_used_when_it_is_back(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, tokens = open_store(), BlockedTokens()
    shutil.rmtree(tmp_path)

    assert store.read(6) is None
    store.delete(6)
    blocked = SavedPrompt(tokens, bytearray(9), 8)  # type: ignore[arg-type]
    store.keep_up([saved(7), blocked], [])
    assert tokens.is_asked.wait(TIMEOUT_S)  # so the other task has ended
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"saved prompts in {tmp_path}: " in record.getMessage()

    tmp_path.mkdir()
    tokens.may_go_on.set()
    store.close(TIMEOUT_S)
    assert list(ids_in(tmp_path)) == [8]


@pytest.mark.parametrize("error", [TypeError, MemoryError, ValueError])
def test_an_unexpected_error_costs_one_prompt_and_is_logged_with_its_traceback(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    """Any error but OSError ended the writer's thread: nothing was saved any more, silently."""

    class Unwritable:
        def __iter__(self) -> Iterator[int]:
            raise error("as told")

        def __len__(self) -> int:
            return 3

    store = open_store()
    unwritable = SavedPrompt(Unwritable(), bytearray(9), 7)  # type: ignore[arg-type]
    store.keep_up([unwritable, saved(8)], [])
    store.close(TIMEOUT_S)
    assert list(ids_in(tmp_path)) == [8]
    assert store._unwritten == 0
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[0] is error


# ---------------------------------------------------------------- the limit


def size_of(folder: Path, *prompt_ids: int) -> int:
    return sum(path_of(folder, prompt_id).stat().st_size for prompt_id in prompt_ids)


def test_beyond_the_limit_the_least_recently_used_files_are_deleted(
    open_store: Open, tmp_path: Path
) -> None:
    written(open_store(), *map(saved, (1, 2, 3)))
    for after, prompt_id in enumerate((2, 3, 1)):
        make_old(path_of(tmp_path, prompt_id), after)
    limit = size_of(tmp_path, 1, 3)

    written(open_store(limit), saved(4))

    assert sorted(ids_in(tmp_path)) == [1, 4]


def test_files_of_exactly_the_limit_stay(open_store: Open, tmp_path: Path) -> None:
    written(open_store(), *map(saved, (1, 2)))
    written(open_store(size_of(tmp_path, 1, 2)), saved(2))
    assert sorted(ids_in(tmp_path)) == [1, 2]


def test_reading_a_file_counts_as_a_use(open_store: Open, tmp_path: Path) -> None:
    written(open_store(), *map(saved, (1, 2, 3)))
    for after, prompt_id in enumerate((1, 2, 3)):
        make_old(path_of(tmp_path, prompt_id), after)
    store = open_store(size_of(tmp_path, 1, 2))

    assert store.read(1) == saved(1)
    written(store, saved(4))

    assert sorted(ids_in(tmp_path)) == [1, 4]


def test_a_prompt_that_does_not_fit_at_all_is_not_kept(open_store: Open, tmp_path: Path) -> None:
    written(open_store(100), saved(7))
    assert list(ids_in(tmp_path)) == []


def test_other_files_are_neither_counted_nor_deleted(open_store: Open, tmp_path: Path) -> None:
    written(open_store(), saved(1))
    others = {"notes.txt", ".1.prompt.5.6", "x.prompt"}
    for name in others:
        (tmp_path / name).write_bytes(bytes(10_000))
        make_old(tmp_path / name)
    written(open_store(size_of(tmp_path, 1)), saved(1))
    assert {path.name for path in tmp_path.iterdir()} == {"1.prompt", *others}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@given(
    st.lists(st.integers(0, 50), max_size=8),
    st.randoms(use_true_random=False),
    st.integers(0, 200),
)
def test_whatever_the_files_the_most_recently_used_that_fit_stay(
    folder: Path, sizes: list[int], random: Random, limit: int
) -> None:
    for prompt_id in ids_in(folder):
        path_of(folder, prompt_id).unlink()
    by_age = list(enumerate(sizes, start=1))  # (id, size); the least recently used first
    random.shuffle(by_age)
    for after, (prompt_id, size) in enumerate(by_age):
        path_of(folder, prompt_id).write_bytes(bytes(size))
        make_old(path_of(folder, prompt_id), after)

    trim(folder, limit)

    while sum(size for _, size in by_age) > limit:
        del by_age[0]
    assert sorted(ids_in(folder)) == sorted(prompt_id for prompt_id, _ in by_age)


def test_a_folder_that_is_missing_cannot_be_trimmed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trim(tmp_path / "missing", 5)


# ---------------------------------------------------------------- bounds


def test_a_disk_that_is_too_slow_costs_the_newest_prompts_and_no_memory(
    open_store: Open,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.prompts.store.MOST_UNWRITTEN", 5000)
    store, tokens = open_store(), BlockedTokens()
    blocked = SavedPrompt(tokens, bytearray(3000), 1)  # type: ignore[arg-type]
    store.keep_up([blocked], [])
    assert tokens.is_asked.wait(TIMEOUT_S)
    store.keep_up([saved(2), saved(3, 3000)], [])
    assert "prompt 3 is not written" in caplog.records[0].getMessage()
    tokens.may_go_on.set()
    store.close(TIMEOUT_S)
    assert sorted(ids_in(tmp_path)) == [1, 2]


def test_a_file_larger_than_the_memory_for_prompts_is_not_read(tmp_path: Path) -> None:
    write_prompt(path_of(tmp_path, 7), saved(7, 5000), IDENTITY)
    store = PromptStore(tmp_path, ROOM, IDENTITY, largest=5000)
    assert store.read(7) is None
    store.close(TIMEOUT_S)


def test_tokens_without_a_state_are_not_written(open_store: Open, tmp_path: Path) -> None:
    written(open_store(), SavedPrompt([1, 2, 3], bytearray(), 7))
    assert list(ids_in(tmp_path)) == []


def test_a_request_for_a_prompt_in_memory_counts_as_a_use_of_its_file(
    open_store: Open, tmp_path: Path
) -> None:
    written(open_store(), *map(saved, (1, 2)))
    for after, prompt_id in enumerate((1, 2)):
        make_old(path_of(tmp_path, prompt_id), after)
    store = open_store(size_of(tmp_path, 1, 2))
    store.keep_up([], [PromptSaved(1, 3, 1000)])
    assert store.read(1) is None
    written(store, saved(4))
    assert sorted(ids_in(tmp_path)) == [1, 4]


def test_a_use_creates_no_file(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.keep_up([], [PromptSaved(1, 3, 1000)])
    assert store.read(1) is None
    store.close(TIMEOUT_S)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_disturbs_nothing_else(
    open_store: Open, tmp_path: Path
) -> None:
    path_of(tmp_path, 5).mkdir()
    make_old(path_of(tmp_path, 5))
    written(open_store(1500), saved(1), saved(2))
    assert list(prompts_in(tmp_path)) == [2]


def test_unwritten_bytes_are_counted_correctly_by_both_threads(open_store: Open) -> None:
    """Both changed the count without a lock, and now and then one change was lost."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        store = open_store()
        for _ in range(2000):
            store.keep_up([saved(1, 10)], [])
        store.close(TIMEOUT_S)
    finally:
        sys.setswitchinterval(before)
    assert store._unwritten == 0
