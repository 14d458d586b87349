"""Lists of CPUs in the kernel's format."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.machine.kernel_files import format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("7\n", (7,)),
        ("", ()),
        ("\n", ()),
        ("9,0-1,1", (0, 1, 9)),
        ("10-10", (10,)),
    ],
)
def test_the_kernels_lists_are_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "-1", "1-", "3-1", "1 2", "0x3", "1--3"])
def test_what_is_not_a_list_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_cpu_list(text)


def test_lists_are_written_compactly() -> None:
    assert format_cpu_list([8, 3, 0, 2, 1, 10, 11]) == "0-3,8,10-11"
    assert format_cpu_list([]) == ""


@given(st.sets(st.integers(0, 300)))
def test_a_list_that_is_written_reads_the_same(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))
