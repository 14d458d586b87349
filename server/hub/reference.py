"""Models by name: `hf:OWNER/REPO/FILE` is a file of the Hugging Face hub, fetched once.

huggingface_hub is imported only where a model is named so: it takes a quarter of a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from workers.model_files.split_names import parts_of

PREFIX = "hf:"
SYNTAX = "hf:OWNER/REPO/FILE.gguf or hf:OWNER/REPO/FILE.gguf@REVISION"
DEFAULT_REVISION = "main"

_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?", re.ASCII)
"""An owner or a repository. The hub's own rules, which are also those of its cache's folders."""
_STEP = re.compile(r"(?!\.{1,2}$)[^\\\x00-\x20\x7f]([^\\\x00-\x1f\x7f]*[^\\\x00-\x20\x7f])?")
"""A file, a folder, or a part of a branch's name; none that leads out of its folder."""


@dataclass(frozen=True, slots=True)
class HubReference:
    """A file of a repository on the hub, at a revision."""

    repository: str
    """OWNER/REPO."""
    file: str
    """Its path in the repository, with slashes."""
    revision: str = DEFAULT_REVISION
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        is_plain = self.revision == DEFAULT_REVISION and "@" not in self.file
        revision = "" if is_plain else f"@{self.revision}"
        return f"{PREFIX}{self.repository}/{self.file}{revision}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The files that belong to the model, the one to load first: all of a split GGUF."""
        return parts_of(self.file)


def parse_reference(text: str) -> HubReference:
    """What `hf:…` names. The last @ begins the revision. Raises ConfigurationError."""
    path, _, revision = text.removeprefix(PREFIX).rpartition("@")
    if not path:
        path, revision = revision, DEFAULT_REVISION
    owner, repo, *file = path.split("/") if path.count("/") >= 2 else ("", "", "")
    names = all(map(_NAME.fullmatch, (owner, repo)))
    steps = all(map(_STEP.fullmatch, (*file, *revision.split("/"))))
    if not (text.startswith(PREFIX) and names and steps):
        raise ConfigurationError(f"{text!r:.200} names no model: it must be {SYNTAX}")
    return HubReference(f"{owner}/{repo}", "/".join(file), revision)


def resolve_model(text: str) -> Path:
    """The model file that `text` names: a path, or `hf:…`, which is fetched unless it is cached.

    Raises ConfigurationError, one sentence, when it cannot be had.
    """
    if not text.startswith(PREFIX):
        return Path(text)
    reference = parse_reference(text)
    try:
        from server.hub.files import fetch
    except (ImportError, ValueError) as error:  # a variable of its that is no number, too
        raise ConfigurationError(f"huggingface_hub cannot be used: {error}") from None
    return fetch(reference)
