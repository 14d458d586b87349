"""Chat templates of strangers, rendered in processes of their own.

    a thread of the front ─▶ IsolatedTemplate.render ─▶ TemplateProcesses.ask ──┐ JSON
    template_process, in a process that the kernel ends after LIMIT_S  ◀────────┘

A template comes with a model file, which may be hostile. bounded_jinja bounds its loops, calls and
filters, but one operation between two looks at the clock (a comparison of nested lists, a sort)
can take hours, and holds the GIL meanwhile: in a thread of the front it would stop the event loop.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from server.chat.bounded_jinja import TemplateFailed, TemplateRefused
from server.chat.control_names import Remark
from server.chat.template_process import FAILED, LIMIT_S, MAX_REPLY, REFUSED
from shared.errors import NotReady

GRACE_S = 5.0
"""Seconds beyond LIMIT_S after which a process that does not answer is killed."""
ENDED_BY_CLOCK = -signal.SIGALRM


class ProcessEnded(Exception):
    """The process has ended instead of answering."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status
        """Negative: the signal that ended it."""


class TemplateProcess:
    """One process, which answers one request at a time. Raises OSError if it cannot be started."""

    def __init__(self) -> None:
        self._connection, child = multiprocessing.Pipe()
        with child:
            self._process = subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-m", "server.chat.template_process", str(child.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(child.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # a terminal's signals are for the front
            )

    def ask(self, request: bytes) -> bytes:
        """The reply. Raises ProcessEnded; the process is of no use then."""
        try:
            self._connection.send_bytes(request)
            if not self._connection.poll(LIMIT_S + GRACE_S):
                self._process.kill()
            return self._connection.recv_bytes(MAX_REPLY)
        except (EOFError, OSError):
            self._connection.close()
            raise ProcessEnded(self._process.wait()) from None

    def end(self) -> None:
        """End the process, whatever it does; a thread that asks it gets ProcessEnded."""
        self._process.kill()
        self._process.wait()


class TemplateProcesses:
    """As many processes as threads that use them at the same time. A context: it ends them."""

    def __init__(self) -> None:
        self._all: set[TemplateProcess] = set()
        self._idle: list[TemplateProcess] = []
        self._is_closed = False

    def __enter__(self) -> TemplateProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        for process in list(self._all):
            process.end()

    def compiled(self, source: str) -> IsolatedTemplate:
        """The template. Raises TemplateFailed, NotReady."""
        words = self.ask({"source": source, "variables": None, "remark": None})
        return IsolatedTemplate(self, source, frozenset(words))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The reply's value. Raises TemplateRefused, TemplateFailed, NotReady."""
        try:
            reply = self._reply(json.dumps(request).encode())
        except OSError as error:
            raise NotReady(f"chat templates cannot be rendered now: {error.strerror}") from None
        except ProcessEnded as end:
            if end.status == ENDED_BY_CLOCK:
                raise TemplateFailed(f"it takes longer than {LIMIT_S:g} s") from None
            raise TemplateFailed(f"its process has ended with status {end.status}") from None
        kind, value = json.loads(reply)
        if kind == REFUSED:
            raise TemplateRefused(value)
        if kind == FAILED:
            raise TemplateFailed(value)
        return value

    def _reply(self, request: bytes) -> bytes:
        """Ask an idle process; if it has been killed, or there is no such one, a new process."""
        process = self._take_idle()
        if process is not None:
            try:
                return self._ask(process, request)
            except ProcessEnded as end:
                if end.status == ENDED_BY_CLOCK:
                    raise
        process = TemplateProcess()
        self._all.add(process)
        if self._is_closed:
            process.end()
        return self._ask(process, request)

    def _ask(self, process: TemplateProcess, request: bytes) -> bytes:
        try:
            reply = process.ask(request)
        except ProcessEnded:
            self._all.discard(process)
            raise
        self._idle.append(process)
        return reply

    def _take_idle(self) -> TemplateProcess | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


class IsolatedTemplate:
    """A template that is rendered in a process of its own."""

    def __init__(self, processes: TemplateProcesses, source: str, words: frozenset[str]) -> None:
        self.source = source
        self.words = words
        self._processes = processes

    def render(self, variables: Mapping[str, Any], rewritten: Remark | None = None) -> str:
        """The text. Raises TemplateRefused, TemplateFailed, NotReady."""
        remark = None if rewritten is None else (rewritten.pattern.pattern, rewritten.mark)
        request = {"source": self.source, "variables": variables, "remark": remark}
        return str(self._processes.ask(request))
