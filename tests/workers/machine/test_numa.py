"""The system call itself, in child processes that read their memory policy back from the kernel.

The tests start this file as a program with a function's name and its arguments. It prints the
result as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from workers.machine.kernel_files import parse_cpu_list
from workers.machine.numa import MAX_NODES, MPOL_PREFERRED, prefer_node

GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
MPOL_DEFAULT = 0
FORBIDDEN = (errno.EPERM, errno.ENOSYS)
WORD = ctypes.sizeof(ctypes.c_ulong) * 8
# Nodes around the ends of the words of the mask.
NODES = (1, 62, 63, 64, 65, 127, 128, MAX_NODES - 2, MAX_NODES - 1)


def in_child(function: Callable[..., object], *numbers: int) -> Any:
    """The function's result in a child process. Skips the test if the kernel forbids it."""
    done = subprocess.run(
        [sys.executable, __file__, function.__name__, *map(str, numbers)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    answer = json.loads(done.stdout)
    if "forbidden" in answer:
        pytest.skip(f"the kernel forbids NUMA policies here: {answer['forbidden']}")
    return answer["answer"]


def policy() -> tuple[int, list[int]]:
    """The mode and nodes of the calling thread's policy."""
    mode = ctypes.c_int()
    mask = (ctypes.c_ulong * (MAX_NODES // WORD))()
    call = ctypes.CDLL(None, use_errno=True).syscall
    number = GET_MEMPOLICY[os.uname().machine]
    # The kernel refuses a mask without room for all possible nodes.
    if call(number, ctypes.byref(mode), mask, MAX_NODES, None, 0) != 0:
        raise OSError(ctypes.get_errno(), "get_mempolicy")
    return mode.value, [n for n in range(MAX_NODES) if mask[n // WORD] >> n % WORD & 1]


def prefer_here(node: int) -> tuple[int, list[int]]:
    prefer_node(node)
    return policy()


def prefer_and_start_thread(node: int) -> tuple[int, list[int]]:
    prefer_node(node)
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(policy).result()


def prefer_in_thread(node: int) -> tuple[int, list[int]]:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(prefer_node, node).result()
    return policy()


def prefer_absent(*nodes: int) -> tuple[list[int | None], tuple[int, list[int]]]:
    """The error number of each node, 0 for none, and the policy afterwards."""
    return [refusal(node) for node in nodes], policy()


def refusal(node: int) -> int | None:
    try:
        prefer_node(node)
    except OSError as error:
        if error.errno in FORBIDDEN:
            raise
        return error.errno
    return 0


def usable_nodes() -> tuple[int, ...]:
    lines = Path("/proc/self/status").read_text().splitlines()
    listed = [line.split()[1] for line in lines if line.startswith("Mems_allowed_list:")]
    return parse_cpu_list(listed[0]) if listed else (0,)


def test_memory_comes_from_the_preferred_node_first() -> None:
    for node in usable_nodes():
        assert in_child(prefer_here, node) == [MPOL_PREFERRED, [node]]


def test_threads_that_are_started_afterwards_prefer_it_too() -> None:
    node = usable_nodes()[-1]

    assert in_child(prefer_and_start_thread, node) == [MPOL_PREFERRED, [node]]


def test_other_threads_keep_their_policy() -> None:
    assert in_child(prefer_in_thread, usable_nodes()[-1]) == [MPOL_DEFAULT, []]


def test_an_absent_node_is_refused_whichever_word_of_the_mask_it_is_in() -> None:
    # If the kernel read one bit too few, it would take the empty mask for "any node".
    absent = [node for node in NODES if node not in usable_nodes()]

    codes, left = in_child(prefer_absent, *absent)

    assert codes == [errno.EINVAL] * len(absent)
    assert left == [MPOL_DEFAULT, []]


@pytest.mark.parametrize("node", [-1, MAX_NODES, 1 << 40])
def test_a_number_that_no_kernel_uses_for_a_node_is_refused(node: int) -> None:
    with pytest.raises(OSError, match=f"NUMA node {node}:") as refused:
        prefer_node(node)

    assert refused.value.errno == errno.EINVAL


def answer_parent(name: str, *numbers: str) -> None:
    try:
        answer = {"answer": globals()[name](*map(int, numbers))}
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        answer = {"forbidden": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    answer_parent(*sys.argv[1:])
