"""A worker process: it sets itself up, loads its model, tells the front, and serves."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from shared.errors import ConfigurationError
from shared.logs import configure_logging
from shared.messages import LoadFailed, Ready
from shared.queues import RequestReceiver, TokenSender
from shared.settings import WorkerSettings
from shared.wire import PROTOCOL
from workers.child.loading import load
from workers.child.loop import Loop
from workers.child.preparation import PreparationStuck
from workers.machine.pinning import pin

SWITCH_INTERVAL_S = 0.0005
"""How long the loop waits for the GIL, in seconds, while another thread runs Python. It waits
after each call of native code, so once for each sequence of a step."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h

logger = logging.getLogger("tokenflume.worker")


def run(
    settings: WorkerSettings,
    requests: Connection,
    tokens: Connection,
    sender_type: type[TokenSender] = TokenSender,
) -> None:
    """Serve `requests` until the front sends Shutdown or is gone.

    `sender_type`: a subclass can observe what is sent.
    """
    prepare_process(settings)
    try:
        load_and_serve(settings, RequestReceiver(requests), sender_type(tokens))
    except MemoryError:
        logger.error("worker %d is out of memory", settings.index)
        raise SystemExit(1) from None
    except PreparationStuck as error:
        logger.error("worker %d is stuck: %s", settings.index, error)
        raise SystemExit(1) from None


def load_and_serve(
    settings: WorkerSettings, receiver: RequestReceiver, sender: TokenSender
) -> None:
    """Load the model, tell the front what was loaded or why nothing was, and serve."""
    started = time.monotonic()
    try:
        model = load(settings, sender)
    except ConfigurationError as error:
        sender.send([LoadFailed(str(error))])
        return
    load_s = time.monotonic() - started
    sender.send([Ready(PROTOCOL, model.engine.info, load_s, model.preparer.prefix_tokens)])
    try:
        Loop(model, receiver, sender).run()
    except (EOFError, BrokenPipeError):
        logger.info("worker %d: the front is gone", settings.index)


def prepare_process(settings: WorkerSettings) -> None:
    """Ignore the signals that the front handles, end with the parent, stay on the own CPUs."""
    # The front decides when a worker ends. Ctrl-C, closed terminals and service managers signal
    # whole process groups.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    os.dup2(2, 1)  # native code may print, and standard output is not a log
    configure_logging(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    pin(settings)


def end_with_parent() -> None:
    """End this process when the front ends, whatever it is doing.

    A thread waits for the parent's end. While native code holds the GIL that thread cannot run, so
    the kernel is asked to send SIGKILL too.
    """
    parent = parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
