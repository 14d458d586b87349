"""Which requests a crash explains."""

from __future__ import annotations

from dataclasses import replace

from scripts.load.request import Request
from scripts.soak.cases import Case
from scripts.soak.crashes import Broken, Crash, unexplained
from scripts.soak.judge import Outcome


def case(dialect: str = "stream") -> Case:
    return Case("short", dialect, Request("prompt", 6, 1), prompt_tokens=6)


def test_what_a_crash_explains_ends_between_the_fault_and_the_replacement() -> None:
    crashes = [Crash("SIGKILL", begun=10.0, ended=11.0)]
    broken = [Broken(case(), Outcome.CRASH_REPORTED, 1.0, 10.5)]
    assert unexplained(broken, crashes, [], slots=4) == []
    for ended in (9.9, 20.0):
        found = unexplained([Broken(case(), Outcome.NOT_READY, 1.0, ended)], crashes, [], slots=4)
        assert found == ["short, stream: not ready, but no worker crashed at that time"]


def test_a_crash_ends_no_more_requests_than_had_a_slot() -> None:
    crashes = [Crash("SIGKILL", 10.0, 11.0), Crash("SIGKILL", 30.0, 31.0)]
    broken = [Broken(case(), Outcome.CRASH_REPORTED, 1.0, 30.5)] * 5
    assert unexplained(broken[:4], crashes, [], slots=4) == []
    (found,) = unexplained(broken, crashes, [], slots=4)
    assert found == ("SIGKILL ended 5 requests, but only 4 held a slot: waiting requests were lost")
    slotless = [Broken(case("tokenize"), Outcome.CRASH_REPORTED, 1.0, 30.5)] * 5
    assert unexplained(slotless, crashes, [], slots=4) == []
    together = [replace(crashes[1], begun=29.9), crashes[1]]
    assert unexplained(broken, together, [], slots=4) == []


def test_a_failure_explains_others_of_its_step_and_nothing_later() -> None:
    broken = [Broken(case(), Outcome.SHARED, 1.0, 5.0)]
    assert unexplained(broken, [], [(4.0, 5.0)], slots=4) == []
    assert unexplained(broken, [], [(1.0, 2.0)], slots=4) == [
        "short, stream: it failed, and no request asked for a failure"
    ]
