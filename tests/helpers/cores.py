"""Runs the suite's processes side by side, each on a CPU of its own.

pytest-xdist starts the processes. A server that a test starts inherits the CPU, so its plan of
workers has that CPU only, and two servers never share one. A test that uses the fixture
`both_cores` waits until no other test runs, and then has all CPUs.

Without pytest-xdist's -n nothing of this happens: every test has all CPUs.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Controller:
    """In the process that starts the others: tells each its CPU, and where the locks are."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenflume-tests-")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        index = int(node.workerinput["workerid"].removeprefix("gw"))
        node.workerinput["cpu"] = cpus[index % len(cpus)]
        node.workerinput["locks"] = self._folder.name

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


class OneCore:
    """In a process that runs tests: keeps it on its CPU, but for tests that need all."""

    def __init__(self, cpu: int, locks: Path) -> None:
        self._all = os.sched_getaffinity(0)
        self._own = {cpu}
        self._gate = os.open(locks / "gate", os.O_CREAT | os.O_RDWR)
        self._cores = os.open(locks / "cores", os.O_CREAT | os.O_RDWR)
        os.sched_setaffinity(0, self._own)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        with self._alone() if needs_both_cores(item) else self._locked(fcntl.LOCK_SH):
            return (yield)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._locked(fcntl.LOCK_EX):
            os.sched_setaffinity(0, self._all)
            try:
                yield
            finally:
                os.sched_setaffinity(0, self._own)

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        # Whoever waits for the lock holds the gate, so that others cannot overtake it for ever.
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._cores, kind)
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._cores, fcntl.LOCK_UN)


def needs_both_cores(item: pytest.Item) -> bool:
    """Whether the test uses the fixture, directly or through another one."""
    return "both_cores" in getattr(item, "fixturenames", ())


def register(config: pytest.Config) -> None:
    """Add the plugin that this process needs; none without -n."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        config.pluginmanager.register(OneCore(worker["cpu"], Path(worker["locks"])))
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Controller())
