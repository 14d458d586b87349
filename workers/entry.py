"""The target of every spawned worker process.

The front imports this module, and with it none of the worker's half: that is imported in the child.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from shared.settings import WorkerSettings


def run_worker(settings: WorkerSettings, requests: Connection, tokens: Connection) -> None:
    """Serve `requests` until the front says so or is gone; in the child only."""
    from workers.child.process import run

    run(settings, requests, tokens)
