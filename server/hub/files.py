"""Files of the hub in the cache of huggingface_hub: found there, or downloaded into it.

The library's cache keeps a file under its hash in `blobs`, a link to it for each commit in
`snapshots`, and the last known commit of each branch in `refs`. The library discards a download
that broke off, and does not check the hash of a download over plain HTTP. So we download the blobs
here, holding the library's lock, and the library finds them.
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
"""Number of files that an error lists."""
LOCK_QUIET_S = 0.2
"""Time to wait for a lock before the log says so."""

logger = logging.getLogger("tokenflume")

_HASH = re.compile(r"[\w.-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(reference: HubReference) -> Path:
    """The file in the cache, with all parts of a split model. A cached file needs no network.

    Raises ConfigurationError with a sentence.
    """
    try:
        return _from_cache(reference) or _from_hub(reference)
    except (OSError, ValueError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = _reason(reference, error)
        is_offline = isinstance(error, OfflineModeIsEnabled | httpx2.TransportError)
        if is_offline and (path := _at_another_commit(reference)):
            logger.warning("%s: %s", reference, reason)
            logger.warning("the file of commit %s is used instead", _commit_of(path, reference))
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
            "for a newer version name its commit (@COMMIT), or remove this one:"
            " hf cache rm hf://models/%s/%s",
            reference.repository,
            reference.file,
        )
    return paths[0]


def _at_another_commit(reference: HubReference) -> Path | None:
    """The newest cached version of a file of the default branch; None if there is none.

    The cache knows one commit of a branch, the latest one from which any file was downloaded. This
    file may have been downloaded from an earlier commit.
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
    """The name of the folder in `snapshots`."""
    return path.parents[reference.file.count("/")].name


def _from_hub(reference: HubReference) -> Path:
    started = time.monotonic()
    headers = build_hf_headers(library_name="tokenflume", library_version=VERSION)
    revision, received, paths = reference.revision, 0, []
    for part in reference.parts:
        metadata = _metadata(reference, part, revision, headers)
        # The other parts come from the same commit as the first.
        revision = str(metadata.commit_hash)
        received += _fetch_blob(reference, part, metadata, headers)
        paths.append(hf_hub_download(reference.repository, part, revision=revision))
    _remember(reference, revision)
    seconds = time.monotonic() - started
    logger.info(
        "%s: downloaded %s bytes in %.1f s (%.1f MB/s), commit %s",
        reference, f"{received:,}", seconds, received / seconds / 1e6, revision,
    )  # fmt: skip
    return Path(paths[0])


def _metadata(
    reference: HubReference, part: str, revision: str, headers: dict[str, str]
) -> HfFileMetadata:
    """The metadata of a file. Raises FileMetadataError if it lacks a commit, a hash or a size."""
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
    """Download the file into `blobs` unless it is there; return the number of bytes received."""
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
            f"{part} has {source.size:,} bytes, more than the hub sends over plain HTTP;"
            f" download it with: hf download {reference.repository} {part}"
        )
    with _alone_with(blob):
        return 0 if blob.exists() else _download_blob(source, blob)


def _download_blob(source: Source, blob: Path) -> int:
    partial = blob.with_name(f"{blob.name}.incomplete")
    present = partial.stat().st_size if partial.exists() else 0
    _check_space(blob.parent, source.size - present)
    logger.info(
        "downloading %s: %s bytes, of which %s are present",
        source.name, f"{source.size:,}", f"{present:,}",
    )  # fmt: skip
    received = download(source, partial)
    partial.replace(blob)
    return received


@contextmanager
def _alone_with(blob: Path) -> Iterator[None]:
    """Hold the library's lock of this file: another process may be downloading it."""
    lock = Path(constants.HF_HUB_CACHE, ".locks", blob.parent.parent.name, f"{blob.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=LOCK_QUIET_S))
        except TimeoutError:
            logger.info("another process is downloading this file; waiting for it")
            stack.enter_context(WeakFileLock(lock))
        yield


def _repository_folder(reference: HubReference) -> Path:
    name = repo_folder_name(repo_id=reference.repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE, name)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"{folder} has {free:,} bytes free, but {needed:,} are needed; HF_HOME sets another"
            " folder"
        )


def _remember(reference: HubReference, commit: str) -> None:
    """Write the commit of a branch or tag into `refs`, as the library does."""
    if reference.revision == commit:
        return
    file = _repository_folder(reference) / "refs" / reference.revision
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    draft.write_text(commit)
    draft.replace(file)


# ---------------------------------------------------------------- reasons of failures


def _reason(reference: HubReference, error: Exception) -> str:
    """Why the file cannot be downloaded, as the end of a sentence."""
    repository, hub = reference.repository, constants.ENDPOINT
    match error:
        case LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return _reason(reference, error.__cause__)
        case OfflineModeIsEnabled():
            at = reference.revision
            return f"it is not in the cache at {at}, and HF_HUB_OFFLINE forbids to download it"
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
            return f"{hub} answered {error.response.status_code} {error.response.reason_phrase}"
        case FileMetadataError():
            return f"{hub} does not answer like the hub: commit, hash or size is missing"
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return f"{hub} cannot be reached: {error or type(error).__name__}"
        case OSError():
            return f"{constants.HF_HUB_CACHE} cannot be written: {error.strerror or error}"
        case _:
            return str(error)


def _who() -> str:
    if get_token() is None:
        return "a request without a token (HF_TOKEN is not set)"
    return "the account of the token (HF_TOKEN)"


def _there_are(reference: HubReference) -> str:
    """The GGUF files of the repository, as the end of a sentence. A split file counts as one."""
    try:
        files = HfApi().list_repo_files(reference.repository, revision=reference.revision)
    except (OSError, httpx2.HTTPError):
        return "its files cannot be listed"
    firsts = {parts_of(file)[0] for file in files if file.endswith(".gguf")}
    named = sorted(firsts)[:MAX_LISTED]
    more = f" and {len(firsts) - len(named)} more" if len(firsts) > len(named) else ""
    return f"it has {', '.join(named)}{more}" if named else "it has no GGUF file"
