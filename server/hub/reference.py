"""Names of files on the Hugging Face hub: `hf:OWNER/REPO/FILE` or `hf:OWNER/REPO/FILE@REVISION`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import ConfigurationError
from workers.model_files.split_names import parts_of

PREFIX = "hf:"
SYNTAX = "hf:OWNER/REPO/FILE.gguf or hf:OWNER/REPO/FILE.gguf@REVISION"
DEFAULT_REVISION = "main"

_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?", re.ASCII)
"""An owner or a repository, by the rules of the hub and of the folders in its cache."""
_STEP = re.compile(r"(?!\.{1,2}$)[^\\\x00-\x20\x7f]([^\\\x00-\x1f\x7f]*[^\\\x00-\x20\x7f])?")
"""A file, a folder, or a part of the name of a branch; never one that leads out of a folder."""


@dataclass(frozen=True, slots=True)
class HubReference:
    """A file of a repository on the hub, at a revision."""

    repository: str
    """OWNER/REPO."""
    file: str
    """The path in the repository, with slashes."""
    revision: str = DEFAULT_REVISION
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        is_plain = self.revision == DEFAULT_REVISION and "@" not in self.file
        revision = "" if is_plain else f"@{self.revision}"
        return f"{PREFIX}{self.repository}/{self.file}{revision}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The files of the model: all parts of a split GGUF, the first part first."""
        return parts_of(self.file)


def parse_reference(text: str) -> HubReference:
    """The reference in `hf:…`. The last @ begins the revision. Raises ConfigurationError."""
    path, _, revision = text.removeprefix(PREFIX).rpartition("@")
    if not path:
        path, revision = revision, DEFAULT_REVISION
    owner, repo, *file = path.split("/") if path.count("/") >= 2 else ("", "", "")
    names = all(map(_NAME.fullmatch, (owner, repo)))
    steps = all(map(_STEP.fullmatch, (*file, *revision.split("/"))))
    if not (text.startswith(PREFIX) and names and steps):
        raise ConfigurationError(f"{text!r:.200} is not a model: it must be {SYNTAX}")
    return HubReference(f"{owner}/{repo}", "/".join(file), revision)
