"""Turns requests into what the scheduler runs: all work on a request that needs no decode step.

Tokenizing a prompt of 1 MiB takes a second (in llama.cpp 80 s if its characters are not in the
vocabulary), checking a large grammar another, and a saved prompt's file may have gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import ContextTooShort
from shared.messages import Embed, Failed, Generate, Tokenize, Tokenized
from workers.child.endings import failed
from workers.child.prepared import PreparedEmbed, PreparedGenerate
from workers.child.tokenize import answer, tokens_of
from workers.engines.base import Engine
from workers.prompts.store import PromptStore

Request = Generate | Embed | Tokenize
Outcome = PreparedGenerate | PreparedEmbed | Tokenized | Failed

SHORT_CHARACTERS = 16 * 1024
"""Largest size of a short request. Its prompt takes 20 ms to tokenize, 0.25 s at worst."""
GRAMMAR_WEIGHT = 16
"""How many characters of a prompt take as long as one of a grammar, which takes 10 to 30 µs."""


class Preparer:
    """Prepares requests. It has no state, so several threads may use it at once.

    `root`: tokens that stand before the prompts that continue the restored prompt.
    `store`: where clients' saved prompts are read; None: they are in memory only.
    """

    def __init__(
        self, engine: Engine, root: Sequence[int] = (), store: PromptStore | None = None
    ) -> None:
        self._engine = engine
        self._root = list(root)
        self._store = store

    @property
    def prefix_tokens(self) -> int:
        """How many tokens stand before each prompt that is not whole."""
        return len(self._root)

    def is_short(self, request: Request) -> bool:
        """Return whether the request is prepared so quickly that others may wait for it."""
        prompt = request.prompt
        size = len(prompt.text) if prompt.tokens is None else len(prompt.tokens)
        if isinstance(request, Generate):
            if self._store is not None and self._store.must_read(request.prompt_id):
                return False
            sampling = request.sampling
            size += GRAMMAR_WEIGHT * (len(sampling.grammar) + len(sampling.json_schema))
        return size <= SHORT_CHARACTERS

    def prepare(self, request: Request) -> Outcome:
        """Return the prepared request or the answer; Failed if there was an error.

        Raises MemoryError.
        """
        try:
            match request:
                case Generate():
                    return self._generate(request)
                case Embed():
                    return PreparedEmbed(request.id, self._embed_tokens(request))
                case Tokenize():
                    return answer(request, self._engine)
        except Exception as error:  # of any kind: it belongs to this request only
            return failed(request.id, error)

    def _generate(self, request: Generate) -> PreparedGenerate:
        root = [] if request.prompt.is_whole else self._root
        tokens = root + tokens_of(request.prompt, self._engine, is_start=not root)
        context = self._engine.info.context
        if len(tokens) >= context:
            raise ContextTooShort(
                f"the prompt has {len(tokens)} tokens; the context holds {context},"
                " of which one must be left for the answer"
            )
        sampler = self._engine.sampler(request.sampling, tokens)
        saved = self._store.read(request.prompt_id) if self._store is not None else None
        return PreparedGenerate(request, tokens, sampler, saved)

    def _embed_tokens(self, request: Embed) -> list[int]:
        tokens = tokens_of(request.prompt, self._engine, is_start=True)
        context = self._engine.info.context
        if len(tokens) > context:
            raise ContextTooShort(
                f"the prompt has {len(tokens)} tokens; the context holds {context}"
            )
        return tokens
