"""The interface of a compiled chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from server.chat.control_names import Remark


class Template(Protocol):
    """A chat template. See bounded_jinja for the one that is rendered in this process."""

    @property
    def source(self) -> str: ...

    @property
    def words(self) -> frozenset[str]:
        """The whole strings that the template may compare with or look up."""

    def render(self, variables: Mapping[str, Any], rewritten: Remark | None = None) -> str:
        """The text. Raises TemplateRefused when the template itself refuses, else TemplateFailed.

        `rewritten` gives the text that replaces what the template has rewritten.
        """


Compile = Callable[[str], Template]
"""Makes a template of its source. Raises TemplateFailed."""
