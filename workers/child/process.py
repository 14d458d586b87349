"""The child's side: pin, load, then one loop that is all of the worker's I/O.

    request queue ─▶ Inbox ─▶ Scheduler.submit / cancel
                              Scheduler.step ─▶ send ─▶ token queue

The model runs in this loop's thread. Nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from shared.errors import ConfigurationError
from shared.logs import configure_logging
from shared.messages import (
    Cancel,
    DropPrompt,
    Embed,
    Generate,
    Heartbeat,
    LoadFailed,
    Loading,
    Message,
    Ready,
    Shutdown,
    Tokenize,
)
from shared.queues import RequestReceiver, TokenSender
from shared.settings import WorkerSettings
from shared.wire import PROTOCOL
from workers.child.inbox import Inbox
from workers.child.scheduler import Scheduler
from workers.child.step_cost import StepCost, measure
from workers.child.tokenize import answer
from workers.engines.base import Engine
from workers.engines.table import ENGINES, load_engine
from workers.machine.pinning import pin
from workers.prompts.cache import PromptCache
from workers.prompts.restore import read_identity, restore_prompt
from workers.prompts.store import PromptStore

HEARTBEAT_S = 0.5
CALIBRATION_STEP_S = 0.2
"""Steps longer than this are not measured when a worker starts: it is to be ready soon."""
SAMPLE = "a"
"""What the steps that are measured consist of, over and over; every context has room for it."""
LOADING_STEP = 0.05
"""Of the model: less is no news."""
WRITE_GRACE_S = 1.5
"""For prompts that are still to be written when the worker ends."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h

logger = logging.getLogger("tokenflume.worker")


def run(settings: WorkerSettings, requests: Connection, tokens: Connection) -> None:
    """The entry of a worker process; returns when the front says so or is gone."""
    prepare_process(settings)
    try:
        load_and_serve(settings, RequestReceiver(requests), TokenSender(tokens))
    except MemoryError:
        logger.error("worker %d is out of memory", settings.index)
        raise SystemExit(1) from None


def load_and_serve(
    settings: WorkerSettings, receiver: RequestReceiver, sender: TokenSender
) -> None:
    """Tell the front what was loaded, or why nothing was, and serve."""
    started = time.monotonic()
    try:
        threads = max(1, len(settings.cpus))
        engine = load_engine(settings.model, threads, LoadingReport(sender).progress)
        scheduler, store = assemble(settings, engine)
    except ConfigurationError as error:
        sender.send([LoadFailed(str(error))])
        return
    load_s = time.monotonic() - started
    sender.send([Ready(PROTOCOL, engine.info, load_s, scheduler.prefix_tokens)])
    try:
        serve(engine, scheduler, receiver, sender, store)
    except (EOFError, BrokenPipeError):
        logger.info("worker %d: the front is gone", settings.index)


class LoadingReport:
    """Tells the front how far loading is: some twenty times, however often it is told."""

    def __init__(self, sender: TokenSender) -> None:
        self._sender = sender
        self._told = 0.0

    def progress(self, share: float) -> None:
        if share < self._told + LOADING_STEP:
            return
        self._told = share
        # Native code may be our caller. Without a front this process ends by itself.
        with contextlib.suppress(BrokenPipeError):
            self._sender.send([Loading(share)])


def assemble(settings: WorkerSettings, engine: Engine) -> tuple[Scheduler, PromptStore | None]:
    """What runs requests on the engine. Raises ConfigurationError."""
    cost = step_cost(engine) if ENGINES[settings.model.engine].measured else None
    cache, store, root = settings.cache, None, None
    if cache.folder is not None or cache.restore is not None:
        identity = read_identity(settings.model, engine)
        if cache.folder is not None:
            store = PromptStore(cache.folder, cache.disk, identity, cache.memory)
        if cache.restore is not None:
            root = restore_prompt(cache.restore, identity, engine)
    scheduler = Scheduler(
        engine,
        time.monotonic,
        cost,
        settings.max_stall_s,
        PromptCache(cache.memory, root if root and root.state else None),
        root.tokens if root else (),
    )
    if root and not root.state:
        scheduler.preload(root.tokens)
    return scheduler, store


def step_cost(engine: Engine) -> StepCost:
    """What the engine's steps take here and now."""
    started = time.monotonic()
    cost = measure(engine, time.monotonic, engine.tokenize(SAMPLE), CALIBRATION_STEP_S)
    logger.debug("steps: %s; measured in %.2f s", cost, time.monotonic() - started)
    return cost


def serve(
    engine: Engine,
    scheduler: Scheduler,
    receiver: RequestReceiver,
    sender: TokenSender,
    store: PromptStore | None = None,
) -> None:
    """The loop. Returns on Shutdown; raises EOFError or BrokenPipeError without a front."""

    def interrupt_for(request_id: int) -> None:
        if request_id not in scheduler.decoding:  # so its prompt is in the step, or is to come
            engine.interrupt()

    inbox = Inbox(receiver, interrupt_for, store.prepare if store else None)
    last_sent = last_counted = time.monotonic()
    while True:
        engine.resume()  # a Cancel that comes after this is taken here, or interrupts the step
        events: list[Message] = []
        for message in inbox.take(HEARTBEAT_S if scheduler.is_idle else 0):
            match message:
                case Generate(prompt_id=prompt_id):
                    if store and (saved := store.fetched(prompt_id)):
                        scheduler.remember(saved)
                    scheduler.submit(message)
                case Embed():
                    scheduler.submit(message)
                case Tokenize():
                    sender.send([answer(message, engine)])  # alone: it may fill a frame
                case Cancel(id=request_id):
                    events += scheduler.cancel(request_id)
                case DropPrompt(prompt_id=prompt_id):
                    scheduler.drop(prompt_id)
                    if store:
                        store.delete(prompt_id)
                case Shutdown():
                    if store:
                        store.close(WRITE_GRACE_S)
                    return
        events += scheduler.step()
        saved_prompts = scheduler.take_saved()
        if store:
            store.keep_up(saved_prompts, events)
        now = time.monotonic()
        if now - last_counted >= HEARTBEAT_S:
            events += scheduler.steps.take()
            last_counted = now
        if not events and now - last_sent >= HEARTBEAT_S:
            events.append(Heartbeat())
        if events:
            sender.send(events)
            last_sent = now


def prepare_process(settings: WorkerSettings) -> None:
    """Make this process a good child: it ends with its parent, and stays on its CPUs."""
    # The front decides when a worker ends. Ctrl-C, terminals that are closed and service managers
    # signal whole groups.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    os.dup2(2, 1)  # native code may print, and standard output is not a log
    configure_logging(settings.log_level, settings.log_format)
    pin(settings)


def end_with_parent() -> None:
    """End this process when the front ends, whatever it is doing.

    A thread waits on the parent. While native code holds the GIL that thread
    cannot run, so the kernel is asked for a SIGKILL too.
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
