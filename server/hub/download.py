"""One file over HTTP into one place: what is there already is not fetched again."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

from server.hub.progress import Progress, show_progress
from shared.errors import ConfigurationError

FRUITLESS_TRIES = 5
"""In a row, none of which brought the file any further: then the connection counts as lost."""
FIRST_WAIT_S = 0.5
"""Before a broken connection is made again; twice that after each fruitless one."""

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be fetched."""

    name: str
    """For people."""
    url: str
    headers: Mapping[str, str]
    size: int
    """Bytes of the whole file."""
    sha256: str | None
    """Of the whole file, in hexadecimal; None: nobody says it."""


def download(source: Source, partial: Path) -> int:
    """Complete and check the file at `partial`; return how many bytes came over the network.

    Raises ConfigurationError when the file is not what it should be, and deletes it then;
    httpx2.HTTPError when the other side cannot be reached or refuses, and OSError when it cannot
    be written: what came stays for the next time.
    """
    partial.touch()
    with partial.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > source.size:
            _empty(file)
        with show_progress(source.name, source.size, file.tell()) as progress:
            _complete(source, file, progress)
        os.fsync(file.fileno())  # or a power cut leaves a file that only looks complete
    _check(source, partial)
    return progress.received


def _complete(source: Source, file: BinaryIO, progress: Progress) -> None:
    fruitless = 0
    while (start := file.tell()) < source.size:
        try:
            _receive(source, file, progress)
            if file.tell() == start:
                raise httpx2.RemoteProtocolError("the server sent nothing")
        except httpx2.TransportError as error:
            fruitless = 0 if file.tell() > start else fruitless + 1
            if fruitless == FRUITLESS_TRIES:
                raise
            logger.warning("%s: the connection broke (%s); going on", source.name, error)
            time.sleep(FIRST_WAIT_S * 2**fruitless)


def _receive(source: Source, file: BinaryIO, progress: Progress) -> None:
    """Append what comes. Raises httpx2.TransportError when it ends early."""
    start = file.tell()
    headers = {**source.headers, "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    # No exceptions to retry on: it would take those of this block for its own.
    with http_stream_backoff(
        "GET",
        source.url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:  # all of it, from its beginning
            _empty(file)
            progress.restart()
        for chunk in response.iter_raw():
            file.write(chunk)
            progress.add(len(chunk))


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _check(source: Source, partial: Path) -> None:
    """Delete a file that is not the one that was asked for. Raises ConfigurationError."""
    damage = None
    if (size := partial.stat().st_size) != source.size:
        damage = f"it has {size:,} bytes, and should have {source.size:,}"
    elif source.sha256 is not None:
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != source.sha256:
            damage = f"its SHA-256 is {digest}, and should be {source.sha256}"
    if damage is not None:
        partial.unlink()
        raise ConfigurationError(
            f"{source.name} arrived damaged and was deleted: {damage};"
            " another start fetches it again"
        )
