"""The function that every spawned worker process runs.

The front imports this module. The child's half is imported inside the function, so the front never
loads it.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from shared.settings import WorkerSettings


def run_worker(settings: WorkerSettings, requests: Connection, tokens: Connection) -> None:
    """Serve `requests` until the front sends Shutdown or is gone. Only for the child process."""
    from workers.child.process import run

    run(settings, requests, tokens)
