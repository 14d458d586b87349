"""Sampling under a grammar, with the method of llama.cpp's own programs.

A token is first chosen without the grammar. Only if the grammar forbids it, all forbidden tokens
are removed and a token is chosen again. So the grammar usually checks a single token per step.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as lib
import numpy as np

from shared.errors import EngineFailed, InvalidRequest
from shared.sampling import SamplingParams
from workers.engines.llama_cpp.vocabulary import NO_TOKEN, Vocabulary
from workers.grammar.gbnf import ROOT, GrammarError, parse_gbnf
from workers.grammar.gbnf_cost import check_cost, check_ways
from workers.grammar.json_schema import SchemaError, schema_to_gbnf

LONGEST_S = 0.5
"""The longest time in seconds for one token. In an ambiguous grammar the number of parses to
follow may grow with every token."""
CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
"""The layout of llama_token_data."""
Candidates = np.ndarray[Any, Any]
"""Tokens to choose from: an array of CANDIDATE."""


def grammar_of(params: SamplingParams, vocabulary: Vocabulary) -> Grammar | None:
    """The grammar of `grammar` or `json_schema`; None without them.

    Raises InvalidRequest, which names the field.
    """
    try:
        if params.grammar:
            check_cost(parse_gbnf(params.grammar))
            return Grammar(params.grammar, vocabulary)
        if params.json_schema:
            text = schema_to_gbnf(params.json_schema)
            check_ways(parse_gbnf(text))  # the converter's grammars are not ambiguous
            return Grammar(text, vocabulary)
    except (GrammarError, SchemaError) as error:
        raise InvalidRequest(f"{'grammar' if params.grammar else 'json_schema'}: {error}") from None
    return None


class Grammar:
    """The state of one answer's grammar. Owns llama.cpp's grammar and frees it when deleted."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        """Raises GrammarError if llama.cpp refuses the grammar."""
        self._grammar: Any = None
        self._ends = vocabulary.ends
        self._false_ends = vocabulary.false_ends
        # llama.cpp would accept their names as text, but an answer does not show them.
        control = sorted(set(vocabulary.control) - vocabulary.ends - self._false_ends)
        self._forbidden = np.array(control, dtype=np.int32)
        self._grammar = lib.llama_sampler_init_grammar(
            vocabulary.vocab, text.encode(), ROOT.encode()
        )
        if not self._grammar:
            raise GrammarError("llama.cpp cannot read it")

    def __del__(self) -> None:
        if self._grammar:
            lib.llama_sampler_free(self._grammar)

    def sample(self, chain: Any, logits: np.ndarray[Any, np.dtype[np.float32]]) -> int:
        """Choose the next token with the chain, and accept it in chain and grammar.

        NO_TOKEN: the answer is complete, and the model has no token to say so.

        Raises EngineFailed if no token is possible, or if it takes longer than LONGEST_S.
        """
        started = time.monotonic()
        token, _ = _choose(chain, _candidates(logits))
        if not self._allows(token):
            token = self._among_allowed(chain, logits)
        if token == NO_TOKEN:
            return token
        lib.llama_sampler_accept(chain, token)
        if token not in self._ends:  # ends were checked above
            lib.llama_sampler_accept(self._grammar, token)
        if time.monotonic() - started > LONGEST_S:
            raise EngineFailed("the grammar is too ambiguous: it has too many parses to follow")
        return token

    def _allows(self, token: int) -> bool:
        if token in self._forbidden or token in self._false_ends:
            return False
        candidate = np.zeros(1, CANDIDATE)
        candidate["id"] = token
        self._apply(candidate)
        return bool(np.isfinite(candidate["logit"][0]))

    def _among_allowed(self, chain: Any, logits: np.ndarray[Any, np.dtype[np.float32]]) -> int:
        candidates = _candidates(logits)
        candidates["logit"][self._forbidden] = -np.inf
        self._apply(candidates)
        allowed = candidates[np.isfinite(candidates["logit"])]
        if not len(allowed):
            raise EngineFailed("the grammar allows none of the model's tokens here")
        ids = allowed["id"].tolist()
        if self._ends.issuperset(ids):
            return int(ids[0])  # the answer is complete, so it ends even if ends are forbidden
        if self._false_ends:
            # llama.cpp allows them as ends only, so where they are alone the answer is complete.
            allowed = allowed[~np.isin(allowed["id"], list(self._false_ends))]
            if not len(allowed):
                return NO_TOKEN
        token, logit = _choose(chain, allowed)
        if not np.isfinite(logit):
            raise EngineFailed("logit_bias forbids all tokens that the grammar allows here")
        return token

    def _apply(self, candidates: Candidates) -> None:
        """Set the logits of forbidden tokens to -inf."""
        lib.llama_sampler_apply(self._grammar, ctypes.byref(_array(candidates)))


def _candidates(logits: np.ndarray[Any, np.dtype[np.float32]]) -> Candidates:
    candidates = np.empty(len(logits), CANDIDATE)
    candidates["id"] = np.arange(len(logits), dtype=np.int32)
    candidates["logit"] = logits
    return candidates


def _array(candidates: Candidates) -> Any:
    data = candidates.ctypes.data_as(lib.llama_token_data_p)
    return lib.llama_token_data_array(data, len(candidates), -1, False)


def _choose(chain: Any, candidates: Candidates) -> tuple[int, float]:
    """The token that the chain chooses, and its logit. The chain may reorder the candidates."""
    array = _array(candidates)
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    chosen = array.data[array.selected]
    return int(chosen.id), float(chosen.logit)
