"""Downloads one file over HTTP; a download that broke off goes on where it ended."""

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

MAX_FRUITLESS_TRIES = 5
"""The download fails after this number of connections in a row that brought no byte."""
FIRST_BACKOFF_S = 0.5
"""Wait before connecting again; doubled after each connection that brought no byte."""

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class Source:
    """A file to download."""

    name: str
    """The name in messages."""
    url: str
    headers: Mapping[str, str]
    size: int
    """Bytes of the whole file."""
    sha256: str | None
    """SHA-256 of the whole file, in hexadecimal; None: not known."""


def download(source: Source, partial: Path) -> int:
    """Complete and check the file at `partial`; return the number of bytes received.

    Raises ConfigurationError for a file that is damaged, and deletes it. Raises httpx2.HTTPError
    if the server cannot be reached or refuses, OSError if the file cannot be written; what was
    received then stays for the next try.
    """
    partial.touch()
    with partial.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > source.size:
            _empty(file)
        with show_progress(source.name, source.size, file.tell()) as progress:
            _complete(source, file, progress)
        os.fsync(file.fileno())  # otherwise a power cut may leave a file that only looks complete
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
            if fruitless == MAX_FRUITLESS_TRIES:
                raise
            logger.warning("%s: the connection broke (%s); connecting again", source.name, error)
            time.sleep(FIRST_BACKOFF_S * 2**fruitless)


def _receive(source: Source, file: BinaryIO, progress: Progress) -> None:
    """Append the received bytes. Raises httpx2.TransportError if the connection breaks."""
    start = file.tell()
    headers = {**source.headers, "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    # No exceptions to retry on: it would also retry on exceptions that this block raises.
    with http_stream_backoff(
        "GET",
        source.url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:  # the whole file
            _empty(file)
            progress.restart()
        for chunk in response.iter_raw():
            file.write(chunk)
            progress.add(len(chunk))


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _check(source: Source, partial: Path) -> None:
    """Delete a damaged file. Raises ConfigurationError."""
    damage = None
    if (size := partial.stat().st_size) != source.size:
        damage = f"it has {size:,} bytes instead of {source.size:,}"
    elif source.sha256 is not None:
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != source.sha256:
            damage = f"its SHA-256 is {digest} instead of {source.sha256}"
    if damage is not None:
        partial.unlink()
        raise ConfigurationError(
            f"{source.name} arrived damaged and was deleted: {damage};"
            " start again to download it again"
        )
