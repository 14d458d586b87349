"""Pins a worker process to its CPUs and to the memory of their NUMA node."""

from __future__ import annotations

import logging
import os

import psutil

from shared.settings import WorkerSettings
from workers.machine.numa import prefer_node

logger = logging.getLogger("tokenflume.worker")


def pin(settings: WorkerSettings) -> None:
    """Pin this process to the CPUs and the NUMA node of the settings.

    Call it before the engine is loaded, because the OpenMP library reads its variable then.
    """
    if settings.cpus:
        psutil.Process().cpu_affinity(list(settings.cpus))
        # Pin one thread of the engine to each CPU. The kernel itself may put two threads on one
        # CPU for seconds. Each of their barriers then takes a time slice: 2 s per token, measured.
        os.environ["GOMP_CPU_AFFINITY"] = " ".join(map(str, settings.cpus))
    if settings.node is not None:
        bind_memory(settings.node)


def bind_memory(node: int) -> None:
    """Allocate memory from the NUMA node if possible. Containers often forbid the call."""
    try:
        prefer_node(node)
    except OSError as error:
        logger.warning("memory is not bound to NUMA node %d: %s", node, error)
