"""Builds a chain of llama.cpp's own samplers from a request's sampling parameters."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import llama_cpp as lib

from shared.errors import InvalidRequest
from shared.sampling import SamplingParams
from workers.engines.llama_cpp.grammar import Grammar, grammar_of
from workers.engines.llama_cpp.vocabulary import Vocabulary

MIROSTAT_M = 100
"""Tokens from which mirostat 1 estimates the distribution, as in its paper (arXiv 2007.14966)."""
SEEDS = 2**32 - 1
"""llama.cpp's seeds are below this number. The number itself requests a random seed."""
SMALLEST_SAVING = 4
"""A first cut is worth its sorting if it leaves less than 1 / SMALLEST_SAVING of the vocabulary."""


class SamplerChain:
    """Owns a llama.cpp sampler chain and frees it when it is deleted."""

    def __init__(self, samplers: Iterator[Any], grammar: Grammar | None = None) -> None:
        self.grammar = grammar
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self.chain = lib.llama_sampler_chain_init(params)
        for sampler in samplers:
            lib.llama_sampler_chain_add(self.chain, sampler)

    def __del__(self) -> None:
        lib.llama_sampler_free(self.chain)


def build_chain(
    params: SamplingParams,
    prompt: Sequence[int],
    *,
    vocab: Vocabulary,
    context: int,
) -> SamplerChain:
    """The chain for a sequence that begins with `prompt`. Penalties apply to its tokens.

    `context`: the most tokens of a sequence.
    Raises InvalidRequest for a logit bias of an unknown token, and for a grammar or schema that
    cannot be used.
    """
    chain = SamplerChain(
        _samplers(params, vocab.vocab, context, vocab.ends), grammar_of(params, vocab)
    )
    recent = max(_penalty_window(params, context), _dry_window(params, context))
    for token in prompt[len(prompt) - min(recent, len(prompt)) :]:
        lib.llama_sampler_accept(chain.chain, token)
    return chain


def _samplers(
    params: SamplingParams, vocab: Any, context: int, ends: Collection[int]
) -> Iterator[Any]:
    """The samplers in llama.cpp's usual order: penalties, cuts, temperature, choice."""
    vocabulary = lib.llama_vocab_n_tokens(vocab)
    biases = _biases(params, vocabulary, ends)
    if biases:
        pairs = [lib.llama_logit_bias(token, bias) for token, bias in biases.items()]
        array = (lib.llama_logit_bias * len(pairs))(*pairs)
        yield lib.llama_sampler_init_logit_bias(vocabulary, len(biases), array)
    first_cut = _first_cut(params, context)
    if 0 < first_cut * SMALLEST_SAVING < vocabulary:
        yield lib.llama_sampler_init_top_k(first_cut)
    if _penalises(params):
        yield lib.llama_sampler_init_penalties(
            vocabulary,
            _penalty_window(params, context),
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
    if dry_window := _dry_window(params, context):
        yield _dry(params, vocab, dry_window)
    if params.temp == 0:
        yield lib.llama_sampler_init_greedy()
    elif params.mirostat:
        yield lib.llama_sampler_init_temp(params.temp)
        yield _mirostat(params, vocabulary, _seed(params))
    else:
        yield from _cuts(params, _seed(params))


def _cuts(params: SamplingParams, seed: int) -> Iterator[Any]:
    if params.top_n_sigma > 0:
        yield lib.llama_sampler_init_top_n_sigma(params.top_n_sigma)
    if params.top_k:
        yield lib.llama_sampler_init_top_k(params.top_k)
    if params.typical_p < 1:
        yield lib.llama_sampler_init_typical(params.typical_p, 1)
    if params.top_p < 1:
        yield lib.llama_sampler_init_top_p(params.top_p, 1)
    if params.min_p > 0:
        yield lib.llama_sampler_init_min_p(params.min_p, 1)
    if params.xtc_probability > 0:
        yield lib.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, seed)
    if params.temp != 1:
        yield lib.llama_sampler_init_temp(params.temp)
    yield lib.llama_sampler_init_dist(seed)


def _first_cut(params: SamplingParams, context: int) -> int:
    """Number of likeliest tokens to which the chain can be restricted beforehand; 0: no cut.

    Penalties that only lower logits push at most `window` tokens out of the k likeliest, if they
    look at `window` tokens. So the k likeliest tokens after the penalties are among the
    k + window likeliest before them. Cutting there first changes no choice, and the penalties need
    not process the rest of the vocabulary.
    """
    k = 1 if params.temp == 0 else params.top_k
    lowers_only = (
        params.repeat_penalty >= 1
        and params.frequency_penalty >= 0
        and params.presence_penalty >= 0
    )
    sees_all = params.top_n_sigma > 0 or params.mirostat > 0
    if not k or not _penalises(params) or not lowers_only or (sees_all and params.temp > 0):
        return 0
    return k + _penalty_window(params, context) + _dry_window(params, context)


def _penalises(params: SamplingParams) -> bool:
    is_neutral = (
        params.repeat_penalty == 1 and params.frequency_penalty == params.presence_penalty == 0
    )
    return params.repeat_last_n > 0 and not is_neutral


def _penalty_window(params: SamplingParams, context: int) -> int:
    """The number of last tokens that are penalised. llama.cpp allocates room for all of them."""
    return min(params.repeat_last_n, context) if _penalises(params) else 0


def _dry_window(params: SamplingParams, context: int) -> int:
    if params.dry_multiplier == 0:
        return 0
    return context if params.dry_penalty_last_n < 0 else min(params.dry_penalty_last_n, context)


def _biases(params: SamplingParams, vocabulary: int, ends: Collection[int]) -> dict[int, float]:
    biases = {bias.token: bias.bias for bias in params.logit_bias}
    unknown = [token for token in biases if token >= vocabulary]
    if unknown:
        raise InvalidRequest(
            f"logit_bias: token {unknown[0]} is not in the vocabulary, which ends at"
            f" {vocabulary - 1}"
        )
    if params.ignore_eos:
        biases |= dict.fromkeys(ends, float("-inf"))
    return biases


def _dry(params: SamplingParams, vocab: Any, window: int) -> Any:
    breakers = [breaker.encode() for breaker in params.dry_sequence_breakers]
    array = (ctypes.c_char_p * len(breakers))(*breakers)
    return lib.llama_sampler_init_dry(
        vocab,
        params.dry_multiplier,
        params.dry_base,
        params.dry_allowed_length,
        window,
        array,
        len(breakers),
    )


def _mirostat(params: SamplingParams, vocabulary: int, seed: int) -> Any:
    if params.mirostat == 1:
        return lib.llama_sampler_init_mirostat(
            vocabulary, seed, params.mirostat_tau, params.mirostat_eta, MIROSTAT_M
        )
    return lib.llama_sampler_init_mirostat_v2(seed, params.mirostat_tau, params.mirostat_eta)


def _seed(params: SamplingParams) -> int:
    """A 32-bit seed for llama.cpp, which depends on all 64 bits of the request's seed."""
    return random.Random(params.seed).randrange(SEEDS)
