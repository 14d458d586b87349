"""Small models with random weights, a builder for each format and architecture that tests load.

Each is under 1 MB, is built in a fraction of a second, and is the same every time. Their
tokenizers take any UTF-8 text. What they write is nonsense in letters and spaces, with
a character of several bytes, each byte a token of its own, now and then (`characters`).
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import gguf
import numpy as np

from scripts.modelling.llama_gguf import LlamaShape, Vocabulary, add_sizes, write_llama
from scripts.modelling.shapes import SHAPES, check_shape
from scripts.modelling.vocabulary import (
    FIRST_BYTE,
    FIRST_CHARACTER,
    LETTERS,
    SPACE,
    make_vocabulary,
    split,
)
from scripts.modelling.weights import ANCHOR, NEVER, Noise, plain_bias, random_weights

# Two, three and four bytes long. No two of the nine bytes are alike, so that each byte
# says which one comes next.
MULTIBYTE = "é語🙂"
END_OF_TEXT = b"<|endoftext|>"

# Biases of the bytes of such characters: of the first one, and of the others, which
# FOLLOWS outweighs only where the last state is almost all the byte before.
OFTEN = 2.0
ALONE = -50.0
FOLLOWS = 160.0

# Text is as varied with other seeds, but with some it goes in circles for a while.
SEED = 5

# How the old formats number their types, of a tensor and of a file alike.
OldType = Literal["F32", "F16"]
OLD_TYPES: dict[OldType, int] = {"F32": 0, "F16": 1}
Tensors = Iterable[tuple[str, np.ndarray]]


def build_llama_gguf(
    path: Path,
    *,
    kind: str = "Q8_0",
    seed: int = SEED,
    characters: str = MULTIBYTE,
    end: float = NEVER,
    **sizes: int,
) -> Path:
    """Write a llama GGUF and return `path`; 512 tokens, context 256, two layers of 64.

    `kind` is F16, F32, Q8_0 or Q4_0; `sizes` replace fields of `LlamaShape`. `characters`
    are the ones that come out byte by byte: no two of all their bytes may be alike, ""
    for none. Hardly ever does one of their bytes come out alone, but test for it. `end` is
    the logit bias of </s>: 0 makes it a token like others, 4 ends most texts within ten
    tokens, 100 ends them at once.
    Raises ModelError for a shape that no engine could run.
    """
    shape = dataclasses.replace(SHAPES["tiny"], **sizes)
    check_shape(shape, kind)
    vocabulary = make_vocabulary(shape.vocabulary)
    write_llama(
        path,
        shape,
        vocabulary,
        _llama_weights(shape, vocabulary, characters, end, seed),
        gguf.GGMLQuantizationType[kind],
        name="Random llama",
    )
    return path


def split_gguf(path: Path, folder: Path, parts: int) -> list[Path]:
    """Write the model again as so many files, in `folder`, and return them in their order."""
    whole = gguf.GGUFReader(path)
    most = -(-len(whole.tensors) // parts)
    architecture = whole.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / path.name, architecture, split_max_tensors=most)
    for field in whole.fields.values():
        # The file's own counts are fields to the reader, too.
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, *of = field.types
            writer.add_key_value(field.name, field.contents(), kind, *of)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = sorted(folder.glob(f"{path.stem}-*.gguf"))
    assert len(written) == parts
    return written


def build_llama_ggjt(
    path: Path,
    *,
    kind: OldType = "F16",
    seed: int = SEED,
    characters: str = MULTIBYTE,
    end: float = NEVER,
) -> Path:
    """Write a llama GGJT version 3, the last format before GGUF, and return `path`.

    ctransformers loads it as model_type "llama". The file says nothing of its context, and
    special tokens are so by their ids alone: 0 <unk>, 1 <s>, 2 </s>. Options as above.
    """
    shape = dataclasses.replace(SHAPES["tiny"], kv_heads=SHAPES["tiny"].heads)
    vocabulary = make_vocabulary(shape.vocabulary)
    with path.open("wb") as file:
        file.write(b"tjgg" + struct.pack("<I", 3))
        file.write(_ggjt_sizes(shape, kind))
        for piece, score in zip(_ggjt_pieces(vocabulary), vocabulary.scores, strict=True):
            file.write(struct.pack("<I", len(piece)) + piece + struct.pack("<f", score))
        for name, values in _llama_weights(shape, vocabulary, characters, end, seed):
            stored = "F32" if values.ndim == 1 else kind
            _write_old_tensor(file, _ggjt_name(name), values, stored, alignment=32)
    return path


def build_gpt2_ggml(
    path: Path,
    *,
    kind: OldType = "F16",
    seed: int = SEED,
    characters: str = MULTIBYTE,
    end: float = NEVER,
    context: int = 256,
) -> Path:
    """Write a GPT-2 in the first, unversioned GGML format, and return `path`.

    ctransformers loads it as model_type "gpt2", with the file's `context` (tokens) and no
    other. 512 tokens: 256 bytes, whose ids are their values, then pieces, then the end of
    text, 511. Other options as above.
    """
    layers, width, heads = 2, 64, 4
    vocabulary = _gpt2_vocabulary(512)
    sizes = (len(vocabulary), context, width, heads, layers, OLD_TYPES[kind], len(vocabulary))
    bias = _gpt2_bias(vocabulary, characters, end)
    with path.open("wb") as file:
        file.write(b"lmgg" + struct.pack("<7i", *sizes))
        for piece in vocabulary:
            file.write(struct.pack("<I", len(piece)) + piece)
        weights = _gpt2_weights(layers, width, context, bias, Noise(seed))
        for name, values in _followed(weights, _successions(characters, first_byte=0)):
            stored = "F32" if values.ndim == 1 or name == "model/wpe" else kind
            _write_old_tensor(file, name, values, stored, alignment=1)
    return path


def build_phi3_gguf(
    path: Path, *, seed: int = SEED, end: float = NEVER, original_context: int | None = None
) -> Path:
    """Write a Phi-3 GGUF in F16, whose end is <|end|>, and return `path`.

    Query, key and value are one matrix, gate and up another. With `original_context` (tokens)
    there are rotary factors for contexts up to it, and others, far from them, for longer ones.
    Options as of `build_llama_gguf`.
    """
    shape = SHAPES["tiny"]
    # llama.cpp refuses a model of this name that has no <|endoftext|>.
    vocabulary = _with_controls(make_vocabulary(shape.vocabulary), END_OF_TEXT, b"<|end|>")
    tensors = dict(_llama_weights(shape, vocabulary, MULTIBYTE, end, seed))
    for i in range(shape.layers):
        block = f"blk.{i}."
        _fuse(tensors, block + "attn_qkv.weight", [f"{block}attn_{x}.weight" for x in "qkv"])
        _fuse(tensors, block + "ffn_up.weight", [f"{block}ffn_{x}.weight" for x in ("gate", "up")])
    writer = _gguf_writer(path, "phi3", shape)
    writer.add_sliding_window(shape.context)  # real files have it; llama.cpp ignores it
    if original_context is not None:
        pairs = shape.head_width // 2
        writer.add_rope_scaling_orig_ctx_len(original_context)
        tensors["rope_factors_short.weight"] = np.ones(pairs, np.float32)
        tensors["rope_factors_long.weight"] = np.linspace(1.0, 60.0, pairs, dtype=np.float32)
    _add_sentencepiece(writer, vocabulary)
    return _finish_gguf(writer, tensors, path)


def build_qwen2_gguf(path: Path, *, seed: int = SEED, end: float = NEVER) -> Path:
    """Write a Qwen2 GGUF in F16, and return `path`: byte-level BPE, an end named <|im_end|>.

    Query, key and value have biases. Nothing comes before a text, and token ids of bytes are
    their values. Options as of `build_llama_gguf`.
    """
    shape = SHAPES["tiny"]
    tensors = _bpe_weights(shape, end, seed)
    noise = Noise(seed + 1)
    for name, values in list(tensors.items()):
        if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            tensors[name.replace("weight", "bias")] = noise.array((len(values),), 0.5)
    writer = _gguf_writer(path, "qwen2", shape)
    _add_bpe(writer, _bpe_vocabulary(shape.vocabulary))
    return _finish_gguf(writer, tensors, path)


def build_qwen3_gguf(path: Path, *, seed: int = SEED, end: float = NEVER) -> Path:
    """Write a Qwen3 GGUF in F16, and return `path`: Qwen2's tokenizer; queries and keys are
    normed in place of biased. Options as of `build_llama_gguf`."""
    shape = SHAPES["tiny"]
    tensors = _bpe_weights(shape, end, seed) | _head_norms(shape)
    writer = _gguf_writer(path, "qwen3", shape)
    _add_bpe(writer, _bpe_vocabulary(shape.vocabulary))
    return _finish_gguf(writer, tensors, path)


def build_gemma3_gguf(
    path: Path, *, seed: int = SEED, end: float = NEVER, window: int = 16
) -> Path:
    """Write a Gemma 3 GGUF in F16, whose end is <end_of_turn>, and return `path`.

    The first of its two layers sees only the last `window` tokens. Branches are normed before
    and after, queries and keys too. Options as of `build_llama_gguf`.
    """
    shape = SHAPES["tiny"]
    vocabulary = _with_controls(make_vocabulary(shape.vocabulary), b"<end_of_turn>")
    tensors = dict(_llama_weights(shape, vocabulary, MULTIBYTE, end, seed)) | _head_norms(shape)
    tensors["token_embd.weight"] /= np.sqrt(shape.width)  # the graph multiplies by it
    for i in range(shape.layers):
        for branch in ("attention", "ffw"):
            # What random_weights has for its spread: all branches add up to the embedding.
            norm = np.full(shape.width, shape.layers**-0.5, np.float32)
            tensors[f"blk.{i}.post_{branch}_norm.weight"] = norm
    writer = _gguf_writer(path, "gemma3", shape)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_sliding_window(window)
    writer.add_sliding_window_pattern(2)
    _add_sentencepiece(writer, vocabulary)
    return _finish_gguf(writer, tensors, path)


# ---------------------------------------------------------------- bytes of characters


def _successions(characters: str, first_byte: int) -> list[tuple[int, int]]:
    """Pairs of token ids (a byte, the one after it) inside the characters' UTF-8."""
    return [
        (first_byte + left, first_byte + right)
        for encoded in map(str.encode, characters)
        for left, right in itertools.pairwise(encoded)
    ]


def _followed(
    weights: Tensors, successions: list[tuple[int, int]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the output row of each second token the embedding of the first.

    The last state holds the embedding of the last token, so the two then find each other.
    Column 0 stays as it is: it holds the biases.
    """
    for name, values in weights:
        if name in ("token_embd.weight", "model/wte"):
            embeddings = values[:, 1:]
        elif name in ("output.weight", "model/lm_head"):
            for left, right in successions:
                direction = embeddings[left] / np.square(embeddings[left]).sum()
                values[right, 1:] = FOLLOWS * direction
        yield name, values


def _bias_bytes(bias: np.ndarray, characters: str, first_byte: int) -> None:
    for character in characters:
        first, *others = (first_byte + byte for byte in character.encode())
        bias[first] = OFTEN
        bias[others] = ALONE


# ---------------------------------------------------------------- llama


def _llama_weights(
    shape: LlamaShape, vocabulary: Vocabulary, characters: str, end: float, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    bias = plain_bias(vocabulary)
    bias[vocabulary.eos] = end
    _bias_bytes(bias, characters, FIRST_BYTE)
    return _followed(random_weights(shape, bias, seed), _successions(characters, FIRST_BYTE))


def _ggjt_sizes(shape: LlamaShape, kind: OldType) -> bytes:
    # The loader works out the feed-forward length: two thirds of four widths, rounded up
    # to a multiple of what stands here. 192 is that for a width of 64.
    multiple = shape.hidden
    return struct.pack(
        "<7I",
        shape.vocabulary,
        shape.width,
        multiple,
        shape.heads,
        shape.layers,
        shape.head_width,
        OLD_TYPES[kind],
    )


def _ggjt_pieces(vocabulary: Vocabulary) -> Iterator[bytes]:
    """The pieces as this format has them: bytes are bytes, and a space is a space."""
    for token, piece in enumerate(vocabulary.pieces):
        if FIRST_BYTE <= token < FIRST_CHARACTER:
            yield bytes([token - FIRST_BYTE])
        else:
            yield piece.replace(SPACE.encode(), b" ")


def _ggjt_name(name: str) -> str:
    for new, old in (
        ("token_embd", "tok_embeddings"),
        ("output_norm", "norm"),
        ("blk.", "layers."),
        ("attn_norm", "attention_norm"),
        ("attn_output", "attention.wo"),
        ("attn_", "attention.w"),
        ("ffn_gate", "feed_forward.w1"),
        ("ffn_down", "feed_forward.w2"),
        ("ffn_up", "feed_forward.w3"),
    ):
        if new in name:
            name = name.replace(new, old)
    return name


# ---------------------------------------------------------------- GGUF of other architectures


def _gguf_writer(path: Path, architecture: str, shape: LlamaShape) -> gguf.GGUFWriter:
    """A writer with the sizes that every architecture has."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"Random {architecture}")  # llama.cpp looks for some names
    add_sizes(writer, shape)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    return writer


def _finish_gguf(writer: gguf.GGUFWriter, tensors: dict[str, np.ndarray], path: Path) -> Path:
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _fuse(tensors: dict[str, np.ndarray], name: str, parts: Sequence[str]) -> None:
    """Put the rows of all `parts`, in their order, into one matrix in their place."""
    tensors[name] = np.concatenate([tensors.pop(part) for part in parts])


def _head_norms(shape: LlamaShape) -> dict[str, np.ndarray]:
    """Norms of each head's queries and keys, as sharp as attention is without (`_spread`)."""
    return {
        f"blk.{i}.attn_{x}_norm.weight": np.full(shape.head_width, 2.0, np.float32)
        for i in range(shape.layers)
        for x in "qk"
    }


def _with_controls(vocabulary: Vocabulary, *names: bytes) -> Vocabulary:
    """The vocabulary with control tokens in place of its last pieces; the last one is its end."""
    size = len(vocabulary.pieces)
    kept = size - len(names)
    return dataclasses.replace(
        vocabulary,
        pieces=[*vocabulary.pieces[:kept], *names],
        types=[*vocabulary.types[:kept], *[gguf.TokenType.CONTROL] * len(names)],
        eos=size - 1,
    )


def _add_sentencepiece(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_unk_token_id(vocabulary.unk)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_add_bos_token(True)


# ---------------------------------------------------------------- byte-level BPE

BPE_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class BpeVocabulary:
    """256 bytes, what `merges` make of them, and at the end the BPE_CONTROLS."""

    pieces: list[str]
    merges: list[str]

    @property
    def eos(self) -> int:
        return len(self.pieces) - 1


def _byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level BPE vocabulary."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _bpe_vocabulary(size: int) -> BpeVocabulary:
    letters = _byte_letters()
    longer = [
        piece.decode().replace(SPACE, letters[ord(" ")])
        for piece in make_vocabulary(2 * size).pieces[FIRST_CHARACTER:]
        if len(piece.decode()) > 1
    ][: size - 256 - len(BPE_CONTROLS)]
    ranks: dict[str, int] = {}
    merges = []
    for rank, piece in enumerate(longer):
        merges.append(" ".join(split(piece, ranks)))
        ranks[piece] = rank
    return BpeVocabulary([*letters, *longer, *BPE_CONTROLS], merges)


def _bpe_weights(shape: LlamaShape, end: float, seed: int) -> dict[str, np.ndarray]:
    """A llama's weights, of a model that writes letters, spaces and MULTIBYTE's bytes."""
    vocabulary = _bpe_vocabulary(shape.vocabulary)
    bias = np.full(shape.vocabulary, NEVER, np.float32)
    bias[[ord(character) for character in f" {LETTERS}"]] = 0.0
    bias[256 : 256 + len(vocabulary.merges)] = 0.0
    bias[vocabulary.eos] = end
    _bias_bytes(bias, MULTIBYTE, first_byte=0)
    weights = random_weights(shape, bias, seed)
    return dict(_followed(weights, _successions(MULTIBYTE, first_byte=0)))


def _add_bpe(writer: gguf.GGUFWriter, vocabulary: BpeVocabulary) -> None:
    normal = len(vocabulary.pieces) - len(BPE_CONTROLS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(BPE_CONTROLS)
    )
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_bos_token_id(normal)
    writer.add_pad_token_id(normal)
    writer.add_add_bos_token(False)


# ---------------------------------------------------------------- GPT-2


def _gpt2_vocabulary(size: int) -> list[bytes]:
    """256 bytes, then pieces of two or more letters, a space before some, then the end."""
    longer = [
        piece.replace(SPACE.encode(), b" ")
        for piece in make_vocabulary(2 * size).pieces[FIRST_CHARACTER:]
        if len(piece.decode()) > 1
    ]
    return [bytes([byte]) for byte in range(256)] + longer[: size - 257] + [END_OF_TEXT]


def _gpt2_bias(vocabulary: list[bytes], characters: str, end: float) -> np.ndarray:
    bias = np.array([0.0 if piece.isalpha() or b" " in piece else NEVER for piece in vocabulary])
    bias[-1] = end
    _bias_bytes(bias, characters, first_byte=0)
    return bias


def _gpt2_weights(
    layers: int, width: int, context: int, bias: np.ndarray, noise: Noise
) -> Iterator[tuple[str, np.ndarray]]:
    def matrix(rows: int, inputs: int, gain: float = 1.0) -> np.ndarray:
        return noise.array((rows, inputs), gain * inputs**-0.5)

    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    # Column 0 of the output matrix is the logit bias, as in make_model: here the last norm
    # sets element 0 of the state, to what is left of a llama's anchor after its own norm.
    anchored = np.eye(1, width, dtype=np.float32)[0]
    yield "model/ln_f/g", ones - anchored
    yield "model/ln_f/b", anchored * np.float32(ANCHOR / 1.4)
    yield "model/wte", noise.array((len(bias), width), 1.0)
    yield "model/wpe", noise.array((context, width), 0.5)
    output = matrix(len(bias), width, gain=3.0)
    output[:, 0] = bias
    yield "model/lm_head", output
    for i in range(layers):
        block = f"model/h{i}/"
        for norm in ("ln_1", "ln_2"):
            yield f"{block}{norm}/g", ones
            yield f"{block}{norm}/b", zeros
        for name, rows, inputs in (
            ("attn/c_attn", 3 * width, width),
            ("attn/c_proj", width, width),
            ("mlp/c_fc", 4 * width, width),
            ("mlp/c_proj", width, 4 * width),
        ):
            gain = layers**-0.5 if name.endswith("c_proj") else 1.0
            yield f"{block}{name}/w", matrix(rows, inputs, gain)
            yield f"{block}{name}/b", np.zeros(rows, np.float32)


# ---------------------------------------------------------------- the old files


def _write_old_tensor(
    file: BinaryIO, name: str, values: np.ndarray, kind: OldType, alignment: int
) -> None:
    """Header, name and data of a tensor; the data begin at a multiple of `alignment` bytes."""
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), OLD_TYPES[kind]))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded)
    file.write(bytes(-file.tell() % alignment))
    file.write(values.astype("<f4" if kind == "F32" else "<f2").tobytes())
