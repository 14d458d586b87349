"""Write a llama-architecture GGUF file with random weights, of any size, to measure speed.

    pip install -e '.[models]'
    python -m scripts.modelling.make_model --shape tinyllama-1.1b --type Q4_0 -o /tmp/model.gguf

A random model computes as much as a trained one of its shape, and needs no download.
It writes varied nonsense in printable characters. It never ends a text by itself, so a
measurement always runs to its token limit.
Exit status: 0 written; 1 the file could not be written; 2 bad options, or an impossible shape.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import gguf
import numpy as np
from tqdm import tqdm

from scripts.modelling.llama_gguf import LlamaShape, write_llama
from scripts.modelling.shapes import SHAPES, SIZES, TYPES, ModelError, check_shape, parameters
from scripts.modelling.vocabulary import make_vocabulary
from scripts.modelling.weights import plain_bias, random_weights


def make_model(
    path: Path, shape: LlamaShape, kind: str, seed: int, *, progress: bool = False
) -> None:
    """Write the model to a file beside `path`, then rename it, so that nobody reads half a model.

    `kind` is one of TYPES. Memory holds one tensor at a time; Q4_K_M needs disk space for an
    F16 model beside the result. The same arguments give the same bytes.
    Raises ModelError for an impossible shape or type, OSError if the file cannot be written.
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
    """Write a model of a type that the gguf package can quantize: all TYPES but Q4_K_M."""
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
    """llama.cpp's quantizer to Q4_K_M, as a function (F16 file, new file).

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
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.modelling.make_model",
        description="Write a llama-architecture GGUF file with random weights, to measure speed.",
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="the .gguf file to write")
    add("--shape", choices=SHAPES, default="tiny", help="preset sizes (default: %(default)s)")
    add("--type", choices=TYPES, default="Q8_0", help="type of the matrices (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of the random weights (default: %(default)s)")
    sizes = parser.add_argument_group("sizes that replace the preset's")
    sizes.add_argument("--layers", type=int, metavar="N")
    sizes.add_argument("--width", type=int, metavar="N", help="elements of an embedding")
    sizes.add_argument("--heads", type=int, metavar="N", help="attention heads of a layer")
    sizes.add_argument(
        "--kv-heads", type=int, metavar="N", help="key and value heads, which the heads share"
    )
    sizes.add_argument("--hidden", type=int, metavar="N", help="elements of the feed-forward layer")
    sizes.add_argument("--vocabulary", type=int, metavar="N", help="tokens of the vocabulary")
    sizes.add_argument("--context", type=int, metavar="N", help="trained context, in tokens")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
