"""The program of a process that renders chat templates for the front; see isolated_templates.

    request (JSON) ─▶ compile, render ─▶ reply (JSON): [kind, value]

The kernel ends this process when a request takes longer than LIMIT_S: a single operation of a
hostile template may take for ever, and no Python code runs until it returns.
"""

from __future__ import annotations

import functools
import json
import re
import resource
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from server.chat.bounded_jinja import SECONDS, ChatTemplate, TemplateFailed, TemplateRefused
from server.chat.control_names import Remark

LIMIT_S = 2 * SECONDS
"""For one request. An honest one takes milliseconds; bounded_jinja ends most others earlier."""
MAX_MEMORY = 2**30
"""Bytes of this process's address space."""
MAX_REPLY = 6 * 2**20
"""Bytes. What a chat of 1 MiB becomes is far below, and no longer prompt fits into a frame to a
worker."""
WORDS, TEXT, REFUSED, FAILED = "words", "text", "refused", "failed"
"""Kinds of replies."""


def main() -> None:
    """Answer requests until the front is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the front, which ends this process
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    with Connection(int(sys.argv[1])) as front:
        while True:
            try:
                request = front.recv_bytes()
            except (EOFError, ConnectionError):
                return
            signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
            reply = _reply(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            front.send_bytes(reply)


def _reply(request: bytes) -> bytes:
    try:
        kind, value = _answer(json.loads(request))
        reply = json.dumps([kind, value], ensure_ascii=False).encode()
        if len(reply) > MAX_REPLY:
            raise TemplateFailed(f"it makes a text of more than {MAX_REPLY} bytes")
    except TemplateRefused as refusal:
        reply = json.dumps([REFUSED, str(refusal)]).encode()
    except TemplateFailed as failure:
        reply = json.dumps([FAILED, str(failure)]).encode()
    except Exception as error:  # a stranger's program may cause anything, such as a MemoryError
        reply = json.dumps([FAILED, f"{type(error).__name__}: {error}"]).encode()
    return reply


def _answer(request: Mapping[str, Any]) -> tuple[str, Any]:
    template = _compiled(request["source"])
    if request["variables"] is None:
        return WORDS, sorted(template.words)
    rewritten = None
    if request["remark"] is not None:
        pattern, mark = request["remark"]
        rewritten = Remark(re.compile(pattern), mark)
    return TEXT, template.render(request["variables"], rewritten)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source)


if __name__ == "__main__":
    main()
