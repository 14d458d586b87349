"""Files of the hub, in huggingface_hub's own cache: found there, or fetched into it.

The library's cache keeps a file under its hash in `blobs`, a link to it under each commit that has
it in `snapshots`, and in `refs` which commit a branch was last seen at. The library throws a broken
download away, and checks no hash of one over plain HTTP. So blobs are fetched here, under
the library's lock, and the library finds them.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfApi,
    close_session,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from server.hub.download import Source, download
from server.hub.reference import DEFAULT_REVISION, HubReference
from server.version import VERSION
from shared.errors import ConfigurationError
from workers.model_files.split_names import parts_of

MAX_LISTED = 20
"""Files that an error names."""
BRIEFLY_S = 0.2
"""How long a lock is waited for before the log says so."""

logger = logging.getLogger("tokenflume")

_HASH = re.compile(r"[\w.-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(reference: HubReference) -> Path:
    """The file in the cache, without a look at the network if it is there; all parts of a split
    one. Raises ConfigurationError, one sentence."""
    try:
        return _from_cache(reference) or _from_hub(reference)
    except (OSError, ValueError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = _reason(reference, error)
        silent = isinstance(error, OfflineModeIsEnabled | httpx2.TransportError)
        if silent and (path := _at_another_commit(reference)):
            logger.warning("%s: %s", reference, reason)
            logger.warning("taking the one of commit %s", _commit_of(path, reference))
            return path
        raise ConfigurationError(f"{reference}: {reason}") from None
    finally:
        close_session()


def _from_cache(reference: HubReference) -> Path | None:
    found = [
        try_to_load_from_cache(reference.repository, part, revision=reference.revision)
        for part in reference.parts
    ]
    paths = [Path(path) for path in found if isinstance(path, str)]
    if len(paths) < len(found):
        return None
    commit = _commit_of(paths[0], reference)
    logger.info("%s is in the cache, at commit %s", reference, commit)
    if reference.revision != commit:
        logger.info(
            "for a newer one name its commit (@COMMIT), or remove this one first:"
            " hf cache rm hf://models/%s/%s",
            reference.repository,
            reference.file,
        )
    return paths[0]


def _at_another_commit(reference: HubReference) -> Path | None:
    """The file of the default branch that was had last, where the hub says nothing.

    The branch is noted once for a repository: fetching another of its files moves it on.
    """
    if reference.revision != DEFAULT_REVISION:
        return None
    whole = [
        snapshot
        for snapshot in (_repository_folder(reference) / "snapshots").glob("*")
        if all((snapshot / part).is_file() for part in reference.parts)
    ]
    newest = max(whole, key=lambda snapshot: snapshot.stat().st_mtime, default=None)
    return newest and newest / reference.parts[0]


def _commit_of(path: Path, reference: HubReference) -> str:
    """The folder's name in `snapshots`."""
    return path.parents[reference.file.count("/")].name


def _from_hub(reference: HubReference) -> Path:
    started = time.monotonic()
    headers = build_hf_headers(library_name="tokenflume", library_version=VERSION)
    revision, received, paths = reference.revision, 0, []
    for part in reference.parts:
        metadata = _metadata(reference, part, revision, headers)
        # What the first part was found at is what the others come from.
        revision = str(metadata.commit_hash)
        received += _fetch_blob(reference, part, metadata, headers)
        paths.append(hf_hub_download(reference.repository, part, revision=revision))
    _remember(reference, revision)
    seconds = time.monotonic() - started
    logger.info(
        "%s: %s bytes fetched in %.1f s (%.1f MB/s), commit %s",
        reference, f"{received:,}", seconds, received / seconds / 1e6, revision,
    )  # fmt: skip
    return Path(paths[0])


def _metadata(
    reference: HubReference, part: str, revision: str, headers: dict[str, str]
) -> HfFileMetadata:
    """What the hub says of a file; with a commit, a hash and a size."""
    metadata = get_hf_file_metadata(
        hf_hub_url(reference.repository, part, revision=revision), headers=headers
    )
    commit, etag = metadata.commit_hash or "", metadata.etag or ""
    usable = _COMMIT.fullmatch(commit) and _HASH.fullmatch(etag) and etag.strip(".")
    if not usable or metadata.size is None:
        raise FileMetadataError("no commit, hash or size")
    return metadata


def _fetch_blob(
    reference: HubReference, part: str, metadata: HfFileMetadata, headers: dict[str, str]
) -> int:
    """Put the file under its hash, unless it is there; return the bytes that were received."""
    etag = str(metadata.etag)
    blob = _repository_folder(reference) / "blobs" / etag
    source = Source(
        name=part,
        url=hf_hub_url(reference.repository, part, revision=metadata.commit_hash),
        headers=headers,
        size=metadata.size or 0,
        sha256=etag if _SHA256.fullmatch(etag) else None,
    )
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not blob.exists() and source.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise ConfigurationError(
            f"{part} has {source.size:,} bytes, more than the hub gives over plain HTTP;"
            f" fetch it with: hf download {reference.repository} {part}"
        )
    with _alone_with(blob):
        return 0 if blob.exists() else _download_blob(source, blob)


def _download_blob(source: Source, blob: Path) -> int:
    partial = blob.with_name(f"{blob.name}.incomplete")
    there = partial.stat().st_size if partial.exists() else 0
    _check_space(blob.parent, source.size - there)
    logger.info(
        "fetching %s of %s bytes, %s of which are there",
        source.name, f"{source.size:,}", f"{there:,}",
    )  # fmt: skip
    received = download(source, partial)
    partial.replace(blob)
    return received


@contextmanager
def _alone_with(blob: Path) -> Iterator[None]:
    """Hold the library's lock of this file. Another server may be fetching it just now."""
    lock = Path(constants.HF_HUB_CACHE, ".locks", blob.parent.parent.name, f"{blob.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=BRIEFLY_S))
        except TimeoutError:
            logger.info("another process is fetching this file; waiting for it")
            stack.enter_context(WeakFileLock(lock))
        yield


def _repository_folder(reference: HubReference) -> Path:
    name = repo_folder_name(repo_id=reference.repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE, name)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"{folder} has {free:,} bytes left, and {needed:,} are needed:"
            " HF_HOME names another place"
        )


def _remember(reference: HubReference, commit: str) -> None:
    """Note which commit a branch or tag is at, as the library does when it is asked for one."""
    if reference.revision == commit:
        return
    note = _repository_folder(reference) / "refs" / reference.revision
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    draft.write_text(commit)
    draft.replace(note)


# ---------------------------------------------------------------- what went wrong


def _reason(reference: HubReference, error: Exception) -> str:
    """Why the file cannot be had, as the end of a sentence."""
    repository, hub = reference.repository, constants.ENDPOINT
    match error:
        case LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return _reason(reference, error.__cause__)
        case OfflineModeIsEnabled():
            at = reference.revision
            return f"the cache does not have it at {at}, and HF_HUB_OFFLINE forbids to fetch it"
        case RevisionNotFoundError():
            return f"{repository} has no branch, tag or commit {reference.revision}"
        case RemoteEntryNotFoundError():
            return f"{repository} has no such file; {_there_are(reference)}"
        case GatedRepoError():
            return f"{_who()} may not read it: ask for access at {hub}/{repository}"
        case RepositoryNotFoundError():
            return f"{hub} has no {repository}, or {_who()} may not see it"
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{hub} refuses it ({error.response.status_code}): {_who()} may not read it"
        case HfHubHTTPError():
            return f"{hub} answers {error.response.status_code} {error.response.reason_phrase}"
        case FileMetadataError():
            return f"{hub} does not answer as the hub does: it says no commit, hash or size"
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return f"{hub} cannot be reached: {error or type(error).__name__}"
        case OSError():
            return f"{constants.HF_HUB_CACHE} cannot be written: {error.strerror or error}"
        case _:
            return str(error)


def _who() -> str:
    if get_token() is None:
        return "who sends no token (HF_TOKEN is not set)"
    return "the account of the token (HF_TOKEN)"


def _there_are(reference: HubReference) -> str:
    """The GGUF files that the repository has. Files that belong to one are one."""
    try:
        files = HfApi().list_repo_files(reference.repository, revision=reference.revision)
    except (OSError, httpx2.HTTPError):
        return "and does not say which files it has"
    firsts = {parts_of(file)[0] for file in files if file.endswith(".gguf")}
    named = sorted(firsts)[:MAX_LISTED]
    more = f" and {len(firsts) - len(named)} more" if len(firsts) > len(named) else ""
    return f"it has {', '.join(named)}{more}" if named else "it has no GGUF file at all"
