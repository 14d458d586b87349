"""Recorded machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.machines import Recording


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


@pytest.fixture(scope="module")
def epyc(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two sockets of 64 cores: 2 CPUs per core, 8 cores per L3, a NUMA node per socket.

    These are thousands of files, so they are written once, and tests only read them.
    """
    recording = Recording(tmp_path_factory.mktemp("epyc"))
    for package, first in enumerate((0, 64)):
        recording.cores(*(f"{c},{c + 128}" for c in range(first, first + 64)), package=package)
        recording.node(package, f"{first}-{first + 63},{first + 128}-{first + 191}")
    for first in range(0, 128, 8):
        recording.l3(f"{first}-{first + 7},{first + 128}-{first + 135}")
    recording.online("0-255")
    return recording


@pytest.fixture
def epyc_of_4_nodes(epyc: Recording, recording: Recording) -> Recording:
    """The same processors with two NUMA nodes per socket."""
    recording.borrow(epyc, "sys/devices/system/cpu")
    for node, first in enumerate(range(0, 128, 32)):
        recording.node(node, f"{first}-{first + 31},{first + 128}-{first + 159}")
    return recording


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """96 cores with 2 CPUs each, 8 cores per L3, written once for all containers."""
    recording = Recording(tmp_path_factory.mktemp("host"))
    recording.cores(*(f"{core},{core + 96}" for core in range(96)))
    for first in range(0, 96, 8):
        recording.l3(f"{first}-{first + 7},{first + 96}-{first + 103}")
    recording.online("0-191")
    return recording


@pytest.fixture
def container(host: Recording, recording: Recording) -> Recording:
    """A container with its own cgroups on the host's processors."""
    recording.borrow(host, "sys/devices")
    return recording
