"""Keeps a process on its own CPUs and near their memory."""

from __future__ import annotations

import logging
import os

import psutil

from shared.settings import WorkerSettings
from workers.machine.numa import prefer_node

logger = logging.getLogger("tokenflume.worker")


def pin(settings: WorkerSettings) -> None:
    """Stay on the CPUs and near the memory of the settings. Before the engine is loaded."""
    if settings.cpus:
        psutil.Process().cpu_affinity(list(settings.cpus))
        # One thread of the engine on each CPU, for good. Left to itself the kernel may put two on
        # one for seconds, and each of their barriers then takes a time slice: 2 s a token, seen.
        # Must be there before the OpenMP library is loaded, which happens with the engine.
        os.environ["GOMP_CPU_AFFINITY"] = " ".join(map(str, settings.cpus))
    if settings.node is not None:
        take_memory_from(settings.node)


def take_memory_from(node: int) -> None:
    """Use the NUMA node's own memory, if we may: containers often forbid to say so."""
    try:
        prefer_node(node)
    except OSError as error:
        logger.warning("memory is not bound to NUMA node %d: %s", node, error)
