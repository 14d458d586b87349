#!/usr/bin/env python3
"""Write a llama-architecture GGUF with random weights, of any size, to measure speed with.

    pip install gguf numpy tqdm
    python -m scripts.modelling.make_model --shape tinyllama-1.1b --type Q4_0 -o /tmp/model.gguf

A random model computes as much as a trained one of its shape, and needs no download.
What it writes is varied nonsense in printable characters, and it never ends a text by
itself, so a measurement always runs to its token limit.
Exit status: 0 written; 1 the file could not be written; 2 bad options, or no such shape.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import gguf
import numpy as np
from tqdm import tqdm

from scripts.modelling.llama_gguf import LlamaShape, Vocabulary, write_llama

SHAPES = {
    "tiny": LlamaShape(
        layers=2, width=64, heads=4, kv_heads=2, hidden=192, vocabulary=512, context=256
    ),
    "small-24m": LlamaShape(
        layers=6, width=512, heads=8, kv_heads=8, hidden=1024, vocabulary=8192, context=2048
    ),
    "tinyllama-1.1b": LlamaShape(
        layers=22, width=2048, heads=32, kv_heads=4, hidden=5632, vocabulary=32_000, context=2048
    ),
    "llama-7b": LlamaShape(
        layers=32, width=4096, heads=32, kv_heads=32, hidden=11_008, vocabulary=32_000, context=4096
    ),
    "mistral-7b": LlamaShape(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        vocabulary=32_000,
        context=32_768,
    ),
}
SIZES = ("layers", "width", "heads", "kv_heads", "hidden", "vocabulary", "context")
TYPES = ("F16", "F32", "Q8_0", "Q4_0", "Q4_K_M")
# Weights of a row that share a scale: a row is a whole number of them.
BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q4_K_M": 256}


class ModelError(Exception):
    """The model asked for cannot be made; the message is one sentence for the user."""


# ---------------------------------------------------------------- the shape


def parameters(shape: LlamaShape) -> int:
    """Number of weights, norms included."""
    return sum(math.prod(size) for _, size in shape.tensors())


def check_shape(shape: LlamaShape, kind: str) -> None:
    """Raise ModelError unless an engine can run `shape` with its matrices stored as `kind`."""
    for name in SIZES:
        if getattr(shape, name) < 1:
            raise ModelError(f"{name} must be at least 1, not {getattr(shape, name)}")
    if shape.width % (2 * shape.heads):
        # Rotary positions turn pairs of a head's elements.
        raise ModelError(
            f"width {shape.width} cannot be cut into {shape.heads} heads of an even width"
        )
    if shape.heads % shape.kv_heads:
        raise ModelError(f"{shape.heads} heads cannot share {shape.kv_heads} kv-heads evenly")
    if not SMALLEST_VOCABULARY <= shape.vocabulary <= LARGEST_VOCABULARY:
        raise ModelError(
            f"vocabulary must be {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}"
            f" tokens, not {shape.vocabulary}"
        )
    block = BLOCKS.get(kind, 1)
    for name, row in (("width", shape.width), ("hidden", shape.hidden)):
        if row % block:
            raise ModelError(f"{kind} needs a multiple of {block} as {name}, not {row}")


# ---------------------------------------------------------------- the vocabulary

SPACE = "\u2581"
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
# One piece each, the space first, for a small vocabulary has only the first few.
CHARACTERS = SPACE + LETTERS + ",.'-!?\u201c\u201d\u2019\u2014" + LETTERS.upper() + "0123456789"
SPECIAL = ("<unk>", "<s>", "</s>")
FIRST_BYTE = len(SPECIAL)
FIRST_CHARACTER = FIRST_BYTE + 256
SMALLEST_VOCABULARY = FIRST_CHARACTER + 1
LARGEST_VOCABULARY = 1 << 18
LONGEST_PIECE = 10
WORD_STARTS = 0.4


def make_vocabulary(size: int) -> Vocabulary:
    """A SentencePiece-style vocabulary of `size` tokens; the same for the same size.

    Three special tokens and 256 bytes come first, so that any UTF-8 text has tokens;
    then single characters, then pieces of 2 to 10 characters.
    """
    characters = _all_characters()[: size - FIRST_CHARACTER]
    pieces = characters + _grow(characters, size - FIRST_CHARACTER - len(characters))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return Vocabulary(
        pieces=[piece.encode() for piece in (*SPECIAL, *bytes_, *pieces)],
        scores=[0.0] * FIRST_CHARACTER + [-float(rank) for rank in range(len(pieces))],
        types=[
            gguf.TokenType.UNKNOWN,
            *[gguf.TokenType.CONTROL] * 2,
            *[gguf.TokenType.BYTE] * 256,
            *[gguf.TokenType.NORMAL] * len(pieces),
        ],
    )


def _all_characters() -> list[str]:
    printable = map(chr, range(0x21, 0x7F))
    return list(dict.fromkeys([*CHARACTERS, *printable]))


def _grow(characters: Sequence[str], count: int) -> list[str]:
    """Make `count` pieces, each by joining two earlier ones, as learning a BPE vocabulary does.

    The joins that come first have the better scores, and the tokenizer makes them first.
    So a join across whose seam it would rather make an earlier one can never come out of
    it, and is left out.
    """
    draw = random.Random(0).random
    joinable = [c for c in characters if c == SPACE or c in LETTERS]
    ranks = {piece: rank for rank, piece in enumerate(characters)}
    grown: list[str] = []
    while len(grown) < count:
        # Squared: like in a language, short and frequent pieces make most of the others.
        left, right = (joinable[int(len(joinable) * draw() ** 2)] for _ in range(2))
        if draw() < WORD_STARTS:
            left = SPACE
        piece = left + right
        if SPACE in right or len(piece) > LONGEST_PIECE or piece in ranks:
            continue
        if len(split(piece, ranks)) == 2:
            ranks[piece] = len(ranks)
            grown.append(piece)
            joinable.append(piece)
    return grown


def split(text: str, ranks: dict[str, int]) -> list[str]:
    """Cut `text` as SentencePiece's BPE does: join the pair of the lowest rank, while any is."""
    parts = list(text)
    while True:
        joins = [
            (rank, i)
            for i in range(len(parts) - 1)
            if (rank := ranks.get(parts[i] + parts[i + 1])) is not None
        ]
        if not joins:
            return parts
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


# ---------------------------------------------------------------- the weights

# Added to the logits of tokens that shall never be sampled, roughly: see `random_weights`.
NEVER = -15.0
# Element 0 of every embedding. Nothing else writes there, so it reaches the output matrix
# as a constant, and column 0 of that matrix adds a bias to each token's logit.
ANCHOR = 2.0


def plain_bias(vocabulary: Vocabulary) -> np.ndarray:
    """Logit biases [vocabulary] that let a model write its NORMAL tokens only."""
    normal = [kind == gguf.TokenType.NORMAL for kind in vocabulary.types]
    return np.where(normal, 0.0, NEVER).astype(np.float32)


def random_weights(
    shape: LlamaShape, bias: np.ndarray, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of `shape`, in its order, as float32.

    `bias` [vocabulary] is added to the logits, times a factor between 1 and 2. The other
    part of a logit has a standard deviation of about 3 at any depth and width.
    """
    noise = Noise(seed)
    for name, size in shape.tensors():
        if len(size) == 1:
            yield name, np.ones(size, np.float32)
            continue
        values = noise.array(size, _spread(name, size[1], shape.layers))
        if name == "token_embd.weight":
            values[:, 0] = ANCHOR
        elif name == "output.weight":
            values[:, 0] = bias
        elif _adds_to_the_stream(name):
            values[0] = 0.0
        yield name, values


def _spread(name: str, inputs: int, layers: int) -> float:
    """Standard deviation of the weights of matrix `name`, which sums over `inputs` elements."""
    if name == "token_embd.weight":
        return 1.0
    if name == "output.weight":
        return 3 / math.sqrt(inputs)
    if _adds_to_the_stream(name):
        return 1 / math.sqrt(inputs * layers)
    if name.endswith(("attn_q.weight", "attn_k.weight")):
        # Attention that picks single positions, so that the same token in another place
        # goes on otherwise and greedy sampling does not run in a circle.
        return 2 / math.sqrt(inputs)
    return 1 / math.sqrt(inputs)


def _adds_to_the_stream(name: str) -> bool:
    return name.endswith(("attn_output.weight", "ffn_down.weight"))


class Noise:
    """Normally distributed numbers, much faster than drawn: cut out of one drawn block.

    Cuts start anywhere and change sign at random, so hardly any two rows are alike.
    """

    BLOCK = 1 << 22
    LONGEST_CUT = 1 << 20

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._block = self._random.standard_normal(self.BLOCK, dtype=np.float32)

    def array(self, size: tuple[int, ...], spread: float) -> np.ndarray:
        """Numbers of mean 0 and standard deviation `spread`, as float32."""
        flat = np.empty(math.prod(size), np.float32)
        for start in range(0, len(flat), self.LONGEST_CUT):
            cut = flat[start : start + self.LONGEST_CUT]
            offset = int(self._random.integers(self.BLOCK - len(cut)))
            sign = 1 - 2 * int(self._random.integers(2))
            np.multiply(self._block[offset : offset + len(cut)], np.float32(sign * spread), out=cut)
        return flat.reshape(size)


# ---------------------------------------------------------------- the file


def make_model(
    path: Path, shape: LlamaShape, kind: str, seed: int, *, progress: bool = False
) -> None:
    """Write the model to `path`, through a file beside it: nobody reads half a model.

    `kind` is one of TYPES. Memory holds one tensor at a time; Q4_K_M needs room on disk
    for an F16 model beside the result. The same arguments give the same bytes.
    Raises ModelError for a shape or type that cannot be made, OSError for the disk.
    """
    check_shape(shape, kind)
    if seed < 0:
        raise ModelError(f"seed must be at least 0, not {seed}")
    part, f16 = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.f16.part")
    try:
        if kind == "Q4_K_M":
            quantize = find_k_quantizer()
            write_model(f16, shape, "F16", seed, progress=progress)
            quantize(f16, part)
        else:
            write_model(part, shape, kind, seed, progress=progress)
        part.replace(path)
    finally:
        for leftover in (part, f16):
            leftover.unlink(missing_ok=True)


def write_model(
    path: Path,
    shape: LlamaShape,
    kind: str,
    seed: int,
    *,
    progress: bool = False,
) -> None:
    """Write a model of a type that the gguf package can quantize: all of TYPES but Q4_K_M."""
    vocabulary = make_vocabulary(shape.vocabulary)
    weights = random_weights(shape, plain_bias(vocabulary), seed)
    with tqdm(total=parameters(shape), unit="w", unit_scale=True, disable=not progress) as bar:
        write_llama(
            path,
            shape,
            vocabulary,
            _counted(weights, bar),
            gguf.GGMLQuantizationType[kind],
            name=f"Random llama of {parameters(shape) / 1e6:,.1f} million weights",
            stream=True,
        )


def _counted(
    weights: Iterator[tuple[str, np.ndarray]], bar: tqdm[NoReturn]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in weights:
        yield name, values
        bar.update(values.size)


def find_k_quantizer() -> Callable[[Path, Path], None]:
    """A function (F16 file, new file) that quantizes to Q4_K_M: llama.cpp's own.

    Raises ModelError when llama-cpp-python is not installed.
    """
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ImportError:
        raise ModelError(
            "Q4_K_M needs llama.cpp's quantizer: pip install 'tokenflume[llama]'"
        ) from None

    def quantize(source: Path, target: Path) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        paths = (os.fsencode(source), os.fsencode(target))
        if llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) != 0:
            raise ModelError(f"llama.cpp could not quantize {source} to Q4_K_M")

    return quantize


# ---------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse_arguments(arguments)
    sizes = {name: value for name in SIZES if (value := getattr(options, name)) is not None}
    shape = dataclasses.replace(SHAPES[options.shape], **sizes)
    try:
        make_model(options.output, shape, options.type, options.seed, progress=True)
    except ModelError as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"make_model: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    size = options.output.stat().st_size
    print(f"{options.output}: {parameters(shape) / 1e6:,.1f} million weights, {size / 1e6:,.1f} MB")
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write a llama-architecture GGUF with random weights, to measure speed with."
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="the .gguf file to write")
    add("--shape", choices=SHAPES, default="tiny", help="preset sizes (default: %(default)s)")
    add("--type", choices=TYPES, default="Q8_0", help="of the matrices (default: %(default)s)")
    add("--seed", type=int, default=1, help="of the random weights (default: %(default)s)")
    sizes = parser.add_argument_group("sizes, in place of the preset's")
    sizes.add_argument("--layers", type=int, metavar="N")
    sizes.add_argument("--width", type=int, metavar="N", help="elements of an embedding")
    sizes.add_argument("--heads", type=int, metavar="N", help="of attention, in a layer")
    sizes.add_argument("--kv-heads", type=int, metavar="N", help="keys and values they share")
    sizes.add_argument("--hidden", type=int, metavar="N", help="elements inside the feed-forward")
    sizes.add_argument("--vocabulary", type=int, metavar="N", help="tokens")
    sizes.add_argument("--context", type=int, metavar="N", help="tokens")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
