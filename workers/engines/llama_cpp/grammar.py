"""Answers that obey a grammar, as llama.cpp's own programs do it.

A token is chosen as ever. Only if the grammar forbids it, all that the grammar forbids is taken
out and one is chosen again: with a model that means to obey, the grammar is asked about one token.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as lib
import numpy as np

from shared.errors import EngineFailed, InvalidRequest
from shared.sampling import SamplingParams
from workers.engines.llama_cpp.vocabulary import Vocabulary
from workers.grammar.gbnf import ROOT, GrammarError, parse_gbnf
from workers.grammar.gbnf_cost import check_cost, check_ways
from workers.grammar.json_schema import SchemaError, schema_to_gbnf

LONGEST_S = 0.5
"""For the grammar's part in one token. An ambiguous one may follow more ways with every token."""
CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
"""llama_token_data."""
Candidates = np.ndarray[Any, Any]


def grammar_of(params: SamplingParams, vocabulary: Vocabulary) -> Grammar | None:
    """What the parameters say that an answer obeys. Raises InvalidRequest, naming the field."""
    try:
        if params.grammar:
            check_cost(parse_gbnf(params.grammar))
            return Grammar(params.grammar, vocabulary)
        if params.json_schema:
            text = schema_to_gbnf(params.json_schema)
            check_ways(parse_gbnf(text))  # what comes out of the converter is not ambiguous
            return Grammar(text, vocabulary)
    except (GrammarError, SchemaError) as error:
        raise InvalidRequest(f"{'grammar' if params.grammar else 'json_schema'}: {error}") from None
    return None


class Grammar:
    """How far an answer is in its grammar. Owns llama.cpp's, and frees it with itself.

    Raises GrammarError where llama.cpp refuses it.
    """

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self._grammar: Any = None
        self._ends = vocabulary.ends
        # llama.cpp lets their names pass for text, but an answer does not show them.
        control = sorted(set(vocabulary.control) - vocabulary.ends)
        self._forbidden = np.array(control, dtype=np.int32)
        self._grammar = lib.llama_sampler_init_grammar(
            vocabulary.vocab, text.encode(), ROOT.encode()
        )
        if not self._grammar:
            raise GrammarError("llama.cpp refuses it")

    def __del__(self) -> None:
        if self._grammar:
            lib.llama_sampler_free(self._grammar)

    def sample(self, chain: Any, logits: np.ndarray[Any, np.dtype[np.float32]]) -> int:
        """Choose the next token by the chain, and accept it in both. Raises EngineFailed."""
        started = time.monotonic()
        token, _ = _choose(chain, _candidates(logits))
        if not self._allows(token):
            token = self._among_allowed(chain, logits)
        lib.llama_sampler_accept(chain, token)
        if token not in self._ends:  # whether it may end was asked before
            lib.llama_sampler_accept(self._grammar, token)
        if time.monotonic() - started > LONGEST_S:
            raise EngineFailed("the grammar is too ambiguous: it follows too many ways at once")
        return token

    def _allows(self, token: int) -> bool:
        if token in self._forbidden:
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
            return int(ids[0])  # complete, so it ends whatever forbids ends
        token, logit = _choose(chain, allowed)
        if not np.isfinite(logit):
            raise EngineFailed("logit_bias forbids all tokens that the grammar allows here")
        return token

    def _apply(self, candidates: Candidates) -> None:
        """Make the logits of what the grammar forbids -inf."""
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
    """What the chain chooses, and its logit then. It may move the candidates, and drop some."""
    array = _array(candidates)
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    chosen = array.data[array.selected]
    return int(chosen.id), float(chosen.logit)
