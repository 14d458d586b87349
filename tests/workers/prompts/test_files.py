"""Saved prompts as files: read as they were written, or refused."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.paths import ROOT
from tests.helpers.support import TIMEOUT_S
from workers.prompts.cache import SavedPrompt
from workers.prompts.files import (
    DIGEST,
    MAGIC,
    MAX_HEAD,
    TEMPORARY_S,
    Head,
    Identity,
    OtherModel,
    PromptFileError,
    SavedPromptInfo,
    clean,
    delete_prompt,
    ids_in,
    path_of,
    prompts_in,
    read_head,
    read_prompt,
    write_prompt,
)

IDENTITY = Identity("a model", "an engine")
STATE = b"the state"
SAVED = SavedPrompt([1, 2, 31999], bytearray(STATE), 7)
START = len(MAGIC) + 4
"""Offset of the head in a file."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one file after the other."""
    return tmp_path_factory.mktemp("prompts") / "7.prompt"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved prompt, alone in its folder."""
    path = tmp_path / "7.prompt"
    write_prompt(path, SAVED, IDENTITY)
    return path


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def file_of(head: bytes, state: bytes = STATE) -> bytes:
    """Build a file as the docstring of the module shows it."""
    return MAGIC + struct.pack(">I", len(head)) + head + digest(head) + state


def values(**changes: Any) -> list[Any]:
    """Return the values of a head for STATE, with the changes."""
    right = {
        "model": IDENTITY.model,
        "state": IDENTITY.state,
        "tokens": struct.pack("<3i", *SAVED.tokens),
        "size": len(STATE),
        "digest": digest(STATE),
    }
    return list((right | changes).values())


def refusal(path: Path, identity: Identity = IDENTITY) -> PromptFileError:
    """Return the error with which a file is refused."""
    with pytest.raises(PromptFileError, match=r"7\.prompt") as caught:
        read_prompt(path, identity)
    return caught.value


def assert_damaged(path: Path) -> None:
    """Check that a file is refused as damaged, not as another model's, which would be kept."""
    assert not isinstance(refusal(path), OtherModel)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- as written

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=40)
IDENTITIES = st.builds(Identity, st.text(max_size=9), st.text(max_size=9))
IDS = st.integers(0, 2**63 - 1)


@given(TOKENS, st.binary(max_size=3000), IDENTITIES, IDS)
@settings(max_examples=150)
def test_what_was_written_is_read(
    place: Path, tokens: list[int], state: bytes, identity: Identity, prompt_id: int
) -> None:
    write_prompt(place, SavedPrompt(tokens, bytearray(state), prompt_id), identity)

    assert read_prompt(place, identity, 5) == SavedPrompt(tokens, bytearray(state), 5)
    assert read_head(place) == Head(identity, tokens, len(state), digest(state))
    assert names_in(place.parent) == {place.name}


def test_a_file_is_what_the_module_says(path: Path) -> None:
    assert path.read_bytes() == file_of(msgpack.packb(values()))


def test_a_file_that_was_made_elsewhere_is_read(path: Path) -> None:
    path.write_bytes(file_of(msgpack.packb(values())))
    assert read_prompt(path, IDENTITY, 7) == SAVED


def test_without_an_id_it_has_none(path: Path) -> None:
    assert read_prompt(path, IDENTITY).id == 0


def test_a_state_of_several_megabytes_comes_back(path: Path) -> None:
    state = bytearray(os.urandom(3 * 2**20 + 1))
    write_prompt(path, SavedPrompt([1], state), IDENTITY)
    assert read_prompt(path, IDENTITY).state == state


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_new_file_takes_the_place_of_the_old(path: Path, size: int) -> None:
    new = SavedPrompt([5], bytearray(size), 7)
    write_prompt(path, new, IDENTITY)
    assert read_prompt(path, IDENTITY, 7) == new
    assert names_in(path.parent) == {path.name}


# ---------------------------------------------------------------- another model's


@pytest.mark.parametrize(
    "identity",
    [
        Identity("another model", "an engine"),
        Identity("a model", "another engine"),
        Identity("an engine", "a model"),
        Identity("", ""),
    ],
)
def test_a_file_of_another_identity_is_undamaged_but_refused(
    path: Path, identity: Identity
) -> None:
    assert isinstance(refusal(path, identity), OtherModel)
    assert read_head(path).identity == IDENTITY


# ---------------------------------------------------------------- damaged


def test_every_changed_byte_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    end_of_head = len(whole) - len(STATE)
    for place in range(len(whole)):
        for change in (*(1 << bit for bit in range(8)), 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= change
            path.write_bytes(damaged)
            assert_damaged(path)
            if place < end_of_head:
                with pytest.raises(PromptFileError):
                    read_head(path)


def test_every_cut_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    end_of_head = len(whole) - len(STATE)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert_damaged(path)
        if size < end_of_head:
            with pytest.raises(PromptFileError):
                read_head(path)


@pytest.mark.parametrize("more", [b"\0", b"e", STATE, bytes(100_000)])
def test_a_file_that_has_grown_is_refused(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)
    assert_damaged(path)


def test_a_file_without_a_state_that_has_grown_is_refused(path: Path) -> None:
    write_prompt(path, SavedPrompt([1, 2], bytearray()), IDENTITY)
    assert read_prompt(path, IDENTITY).state == b""
    path.write_bytes(path.read_bytes() + b"\0")
    assert_damaged(path)


def test_an_earlier_or_a_later_version_is_refused(path: Path) -> None:
    for version in (0, 2):
        path.write_bytes(MAGIC[:-1] + bytes([version]) + path.read_bytes()[len(MAGIC) :])
        assert "version" in str(refusal(path))


def test_two_files_mixed_up_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    write_prompt(path, SavedPrompt([1, 2, 5], bytearray(b"The state")), IDENTITY)
    end_of_head = len(whole) - len(STATE)
    path.write_bytes(whole[:end_of_head] + path.read_bytes()[end_of_head:])
    assert_damaged(path)


@given(st.binary(max_size=120))
def test_rubbish_is_refused(place: Path, data: bytes) -> None:
    for beginning in (b"", MAGIC, MAGIC + struct.pack(">I", len(data))):
        place.write_bytes(beginning + data)
        assert_damaged(place)


# ---------------------------------------------------------------- heads with a right digest

WRONG_VALUES: dict[str, Any] = {
    "nothing": None,
    "a number": 5,
    "a text": "model",
    "bytes": b"model",
    "a map": dict(zip(("model", "state", "tokens", "size", "digest"), values(), strict=True)),
    "an empty list": [],
    "a value too few": values()[:-1],
    "a value too many": [*values(), 0],
    "a list in a list": [values()],
    "a model that is bytes": values(model=b"a model"),
    "a model that is a number": values(model=7),
    "no state": values(state=None),
    "tokens in a list": values(tokens=SAVED.tokens),
    "tokens in a text": values(tokens="abcd"),
    "a token that is cut": values(tokens=bytes(7)),
    "a size in a text": values(size="9"),
    "a size with a fraction": values(size=9.0),
    "no size": values(size=None),
    "a negative size": values(size=-1),
    "the least size": values(size=-(2**63)),
    "a size beyond the file": values(size=2**40),
    "the largest size": values(size=2**64 - 1),
    "a digest in a text": values(digest="d" * DIGEST),
    "an extension": msgpack.ExtType(5, b"x"),
    "a time": msgpack.Timestamp(5, 6),
}
OTHER_STATES: dict[str, Any] = {
    "a size one too small": values(size=len(STATE) - 1),
    "a size one too large": values(size=len(STATE) + 1),
    "a short digest": values(digest=digest(STATE)[:-1]),
    "a long digest": values(digest=digest(STATE) + b"\0"),
    "an empty digest": values(digest=b""),
    "another digest": values(digest=digest(b"another state")),
}
"""Valid values that do not match the state."""
NO_VALUES: dict[str, bytes] = {
    "no bytes": b"",
    "a byte that msgpack does not use": b"\xc1",
    "values that are cut": msgpack.packb(values())[:-1],
    "values and more": msgpack.packb(values()) + b"\0",
    "values twice": msgpack.packb(values()) * 2,
    "a text that is no UTF-8": b"\x95\xa1\xff" + msgpack.packb(values())[9:],
    "a list that is longer than the head": b"\xdd\xff\xff\xff\xff",
    "a map that is longer than the head": b"\xdf\xff\xff\xff\xff",
    "bytes that are longer than the head": b"\xc6\xff\xff\xff\xff",
    "lists in lists": b"\x91" * 100_000 + b"\xc0",
    "maps in maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "a map with a list as its key": b"\x81\x91\x01\x01",
    "a map with a number as its key": b"\x81\x01\x01",
    "a time of the wrong length": b"\xd5\xff\0\0",
    "a time with too many nanoseconds": b"\xd7\xff" + b"\xff" * 8,
}


@pytest.mark.parametrize("wrong", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_head_of_other_values_is_refused(path: Path, wrong: Any) -> None:
    path.write_bytes(file_of(msgpack.packb(wrong)))
    assert_damaged(path)
    with pytest.raises(PromptFileError):
        read_head(path)


@pytest.mark.parametrize("other", OTHER_STATES.values(), ids=OTHER_STATES)
def test_a_head_with_another_state_digest_is_read_but_the_prompt_is_refused(
    path: Path, other: Any
) -> None:
    path.write_bytes(file_of(msgpack.packb(other)))
    assert read_head(path).tokens == SAVED.tokens
    assert_damaged(path)


@pytest.mark.parametrize("head", NO_VALUES.values(), ids=NO_VALUES)
def test_a_head_that_is_not_msgpack_is_refused(path: Path, head: bytes) -> None:
    path.write_bytes(file_of(head))
    assert_damaged(path)
    with pytest.raises(PromptFileError):
        read_head(path)


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_a_head_of_any_bytes_is_refused(place: Path, head: bytes) -> None:
    place.write_bytes(file_of(head))
    assert_damaged(place)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.integers(0, 4), ANYTHING)
@settings(max_examples=300)
def test_a_head_with_anything_in_the_place_of_a_value_is_read_or_refused(
    place: Path, number: int, value: Any
) -> None:
    head = values()
    head[number] = value
    place.write_bytes(file_of(msgpack.packb(head)))
    try:
        state = read_prompt(place, read_head(place).identity).state
    except PromptFileError:
        return
    assert state == STATE


def test_a_head_that_is_larger_than_any_is_refused_though_it_makes_sense(path: Path) -> None:
    path.write_bytes(file_of(msgpack.packb(values(model="m" * MAX_HEAD))))
    with pytest.raises(PromptFileError):
        read_head(path)
    path.unlink()


@pytest.mark.parametrize("length", [2**31, 2**32 - 1])
def test_a_head_that_is_said_to_be_larger_than_the_file_is_refused(path: Path, length: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(MAGIC + struct.pack(">I", length) + whole[START:])
    assert_damaged(path)


# ---------------------------------------------------------------- what cannot be read or written


def test_a_file_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    for read in (read_head, lambda path: read_prompt(path, IDENTITY)):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "7.prompt")


def test_a_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_prompt(tmp_path, IDENTITY)


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_prompt(tmp_path / "missing" / "7.prompt", SAVED, IDENTITY)
    assert names_in(tmp_path) == set()


def test_if_a_folder_has_the_name_no_temporary_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "7.prompt"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_prompt(path, SAVED, IDENTITY)
    assert names_in(tmp_path) == {"7.prompt"}
    assert names_in(path) == set()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Within, no file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 10, 200, 50_000])
def test_on_a_full_disk_the_old_file_stays_and_no_temporary_file_is_left(
    path: Path, size: int
) -> None:
    new = SavedPrompt([1] * 100, bytearray(100_000), 7)
    with room_for(size), pytest.raises(OSError, match="too large"):
        write_prompt(path, new, IDENTITY)
    assert read_prompt(path, IDENTITY, 7) == SAVED
    assert names_in(path.parent) == {path.name}


# ---------------------------------------------------------------- many writers

WRITERS = 6
ROUNDS = 25
"""How often each writer writes."""


def of_writer(number: int) -> SavedPrompt:
    """Make a prompt whose size and state differ from those of all other writers."""
    return SavedPrompt([number] * (number + 1), bytearray([number]) * (1 + 70_000 * number), 7)


def test_threads_that_write_the_same_prompt_leave_one_whole_file(path: Path) -> None:
    """A reader always reads a complete file, too."""
    start, are_done = threading.Barrier(WRITERS + 1), threading.Event()
    errors: list[Exception] = []
    read: list[SavedPrompt] = []

    def write(number: int) -> None:
        try:
            start.wait(TIMEOUT_S)
            for _ in range(ROUNDS):
                write_prompt(path, of_writer(number), IDENTITY)
        except Exception as error:
            errors.append(error)

    def read_all() -> None:
        try:
            start.wait(TIMEOUT_S)
            while not are_done.is_set():
                read.append(read_prompt(path, IDENTITY, 7))
        except Exception as error:
            errors.append(error)

    write_prompt(path, of_writer(0), IDENTITY)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    reader = threading.Thread(target=read_all)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join(TIMEOUT_S)
    are_done.set()
    reader.join(TIMEOUT_S)

    assert errors == []
    written = [of_writer(number) for number in range(WRITERS)]
    assert read
    assert all(prompt in written for prompt in read)
    assert read_prompt(path, IDENTITY, 7) in written
    assert names_in(path.parent) == {path.name}


WRITE = """
import sys
from pathlib import Path
from workers.prompts.cache import SavedPrompt
from workers.prompts.files import Identity, write_prompt
print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    write_prompt(Path(sys.argv[1]), SavedPrompt([1], bytearray(50_000)), Identity("m", "e"))
"""


def start_writer(code: str, path: Path) -> subprocess.Popen[str]:
    """Start a writer that is ready, and begins when it gets a line."""
    command = [sys.executable, "-c", code, str(path)]
    writer = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def test_processes_that_write_the_same_prompt_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "7.prompt"
    writers = [start_writer(WRITE, path) for _ in range(2)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=TIMEOUT_S)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read_prompt(path, Identity("m", "e")) == SavedPrompt([1], bytearray(50_000))
    assert names_in(tmp_path) == {path.name}


# ---------------------------------------------------------------- what killed writers leave

WRITE_AND_DIE = (
    """
import resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
"""
    + WRITE
)


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def left_by_a_killed_writer(path: Path) -> Path:
    """Return what is in the folder after a process that wrote there was killed."""
    before = set(path.parent.iterdir())
    writer = start_writer(WRITE_AND_DIE, path)
    writer.communicate("\n", timeout=TIMEOUT_S)
    assert writer.returncode == -signal.SIGXFSZ
    (left,) = set(path.parent.iterdir()) - before
    return left


def test_every_process_writes_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "8.prompt"
    assert left_by_a_killed_writer(path) != left_by_a_killed_writer(path)


def test_a_temporary_file_of_a_killed_writer_is_not_a_prompt_and_is_deleted_when_old(
    path: Path,
) -> None:
    folder = path.parent
    left = left_by_a_killed_writer(folder / "8.prompt")

    assert list(ids_in(folder)) == [7]
    clean(folder)
    assert left.exists()
    make_older(left, TEMPORARY_S + 1)
    clean(folder)
    assert names_in(folder) == {path.name}


@pytest.mark.parametrize(("age", "is_left"), [(TEMPORARY_S - 60, True), (TEMPORARY_S + 60, False)])
def test_only_what_no_writer_can_still_need_is_deleted(
    tmp_path: Path, age: float, is_left: bool
) -> None:
    left = tmp_path / ".7.prompt.12345.0"
    left.touch()
    make_older(left, age)
    clean(tmp_path)
    assert left.exists() == is_left


@pytest.mark.parametrize(
    "name",
    ["7.prompt", "7.prompt.12345.0", ".7.prompt", ".notes", "notes.txt", ".7.12345.0", "x.prompt"],
)
def test_everything_else_stays_however_old_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    make_older(tmp_path / name, 100 * TEMPORARY_S)
    clean(tmp_path)
    assert names_in(tmp_path) == {name}


# ---------------------------------------------------------------- the folder


@given(st.sets(st.integers(1, 2**63 - 1), max_size=5))
def test_ids_are_found_by_the_names_of_their_files(place: Path, prompt_ids: set[int]) -> None:
    for path in place.parent.iterdir():
        path.unlink()
    for prompt_id in prompt_ids:
        path_of(place.parent, prompt_id).touch()
    assert sorted(ids_in(place.parent)) == sorted(prompt_ids)


@pytest.mark.parametrize(
    "name",
    [
        "0.prompt",
        "00.prompt",
        "007.prompt",
        "-1.prompt",
        "+7.prompt",
        "7_0.prompt",
        " 7.prompt",
        "7 .prompt",
        "7.0.prompt",
        "1e3.prompt",
        "0x7.prompt",
        "x.prompt",
        ".prompt",
        ".7.prompt",
        ".7.prompt.1.2",
        "7.prompt.prompt",
        "7.prompt.1.2",
        "7.prompt~",
        "7.PROMPT",
        "7prompt",
        "7",
        "prompt",
        "７.prompt",
        "٧.prompt",
        "².prompt",
        os.fsdecode(b"\xff.prompt"),
        os.fsdecode(b"7\xff.prompt"),
    ],
    ids=ascii,
)
def test_other_names_are_not_ids(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "12.prompt").touch()
    assert list(ids_in(tmp_path)) == [12]


def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    for list_all in (ids_in, prompts_in):
        with pytest.raises(FileNotFoundError):
            list(list_all(tmp_path / "missing"))


def test_an_empty_folder_has_no_prompts(tmp_path: Path) -> None:
    assert prompts_in(tmp_path) == {}


def test_the_prompts_of_a_folder_are_known_by_their_heads(path: Path) -> None:
    other = path_of(path.parent, 12)
    write_prompt(other, SavedPrompt([], bytearray(5000), 12), Identity("another", "another"))
    os.utime(path, (1.5e9, 1.6e9))
    os.utime(other, (1.7e9, 1.75e9))
    assert prompts_in(path.parent) == {
        7: SavedPromptInfo(7, 3, path.stat().st_size, 1.6e9, workers=0, is_on_disk=True),
        12: SavedPromptInfo(12, 0, other.stat().st_size, 1.75e9, workers=0, is_on_disk=True),
    }


def test_damaged_and_other_files_are_not_prompts_of_the_folder(path: Path) -> None:
    folder, whole = path.parent, path.read_bytes()
    for name, data in {
        "8.prompt": b"",
        "9.prompt": whole[:START],
        "10.prompt": whole.replace(MAGIC, MAGIC[::-1]),
        "11.prompt": file_of(msgpack.packb(values(size=2**40))),
        ".7.prompt.1.2": whole,
        "x.prompt": whole,
        "notes.txt": b"notes",
    }.items():
        (folder / name).write_bytes(data)
    assert prompts_in(folder).keys() == {7}


def test_a_file_with_a_head_that_is_not_msgpack_is_not_a_prompt_of_the_folder(path: Path) -> None:
    path_of(path.parent, 8).write_bytes(file_of(b"\xc1"))
    assert prompts_in(path.parent).keys() == {7}


def test_a_prompt_is_deleted_once_and_no_other_with_it(path: Path) -> None:
    other = path_of(path.parent, 77)
    write_prompt(other, SAVED, IDENTITY)
    assert delete_prompt(path.parent, 7)
    assert names_in(path.parent) == {"77.prompt"}
    assert not delete_prompt(path.parent, 7)


def test_in_a_missing_folder_there_is_nothing_to_delete(tmp_path: Path) -> None:
    assert not delete_prompt(tmp_path / "missing", 7)


def test_what_cannot_be_deleted_is_an_os_error(tmp_path: Path) -> None:
    path_of(tmp_path, 7).mkdir()
    with pytest.raises(OSError, match=r"7\.prompt"):
        delete_prompt(tmp_path, 7)
