#!/usr/bin/env python3
"""Train a small llama-architecture language model on a folder of texts; write it as GGUF.

    pip install torch sentencepiece gguf tqdm
    python -m scripts.modelling.train_demo_model TEXTS --minutes 80 \\
        -o workers/bundled/fairy-tales.gguf

TEXTS is a folder of UTF-8 .txt files, a blank line between paragraphs. Contents
lists, prefaces, footnotes and editors' notes are dropped; a heading begins a new
story. Every 30th stretch of the text is held out: the loss printed as "held out"
is in bits per byte of it, and no weight and no vocabulary piece has seen it.
The defaults are those of the model that the project ships.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from tqdm import tqdm

from scripts.modelling.llama_gguf import LlamaShape, Vocabulary, write_llama

# ---------------------------------------------------------------- the text

NOT_A_STORY = re.compile(
    r"(contents|preface|introduction|dedication|list of|illustrat|transcriber|preparer|notes?\b)",
    re.IGNORECASE,
)
NOTES_TO_THE_END = re.compile(r"(notes and references|oyez-oyez)", re.IGNORECASE)
FOOTNOTE = re.compile(r"\[(footnote|transcriber|greek|illustration)[^\]]*\]", re.IGNORECASE)
FOOTNOTE_MARK = re.compile(r" ?[\[(]\d{1,3}[\])]")
ORNAMENT = re.compile(r"[_*#|=\\{}<>^~]")


def read_stories(folder: Path) -> list[str]:
    """All stories of the folder's .txt files, in name order, paragraphs apart by a blank line."""
    stories: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        if path.name.lower() != "readme.txt":
            stories += split_stories(path.read_text(encoding="utf-8"))
    if not stories:
        raise SystemExit(f"{folder}: no story found in its .txt files")
    return stories


def split_stories(text: str) -> list[str]:
    """Cut a book at its headings and keep what reads as prose of at least 600 characters."""
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text)]
    stories: list[list[str]] = [[]]
    keep, position = True, 0
    for paragraph in paragraphs:
        position += len(paragraph)
        if NOTES_TO_THE_END.match(paragraph) and position > len(text) // 2:
            break
        if is_heading(paragraph):
            keep = not NOT_A_STORY.match(paragraph)
            stories.append([])
        elif keep and is_prose(paragraph):
            stories[-1].append(clean(paragraph))
    joined = ("\n\n".join(paragraphs) for paragraphs in stories)
    return [story for story in joined if len(story) >= 600]


def is_heading(paragraph: str) -> bool:
    """A short line that does not end as a sentence does, or one without small letters."""
    if len(paragraph) > 90 or "\n" in paragraph:
        return False
    letters = [c for c in paragraph if c.isalpha()]
    if not letters:
        return False
    return all(c.isupper() for c in letters) or (
        paragraph[0].isalnum() and paragraph[-1] not in ".,;:!?’”\"'-)_"
    )


def is_prose(paragraph: str) -> bool:
    """Not a contents list, a note of sources, a rule of stars or a line of capitals."""
    if re.match(
        r"[_\[(]*(\d+\b|source|parallel|remark|illustrat|by\b|translated)", paragraph, re.I
    ):
        return False
    letters = sum(c.isalpha() for c in paragraph)
    capitals = sum(c.isupper() for c in paragraph)
    return letters > 0.6 * len(paragraph) and capitals < 0.2 * letters


def clean(paragraph: str) -> str:
    """One line, without footnotes and emphasis marks, with typographic quotes and dashes."""
    text = FOOTNOTE_MARK.sub("", FOOTNOTE.sub("", paragraph))
    text = " ".join(ORNAMENT.sub("", text).split()).replace("--", "—").replace(" — ", "—")
    text = re.sub(r"(^|[\s(—‘])\"", r"\1“", text).replace('"', "”")
    return re.sub(r"(^|[\s(—“])'", r"\1‘", text).replace("'", "’")


def hold_out(
    stories: list[str], stretch: int = 8_000, every: int = 30
) -> tuple[list[str], list[str]]:
    """Split into (training, held out) documents, a stretch of 8,000 characters in 30 held out.

    Stretches end at a paragraph, so no sentence is in both.
    """
    training: list[str] = []
    held_out: list[str] = []
    position = 0
    for story in stories:
        marked: list[tuple[bool, str]] = []
        for paragraph in story.split("\n\n"):
            marked.append((position // stretch % every == every - 1, paragraph))
            position += len(paragraph)
        for is_held_out, group in itertools.groupby(marked, key=lambda m: m[0]):
            document = "\n\n".join(paragraph for _, paragraph in group)
            (held_out if is_held_out else training).append(document)
    return training, held_out


# ---------------------------------------------------------------- the vocabulary


def train_tokenizer(documents: list[str], size: int) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE vocabulary with byte fallback, as llama's tokenizer expects it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n\n".join(documents).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.9999,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def vocabulary_of(tokenizer: sentencepiece.SentencePieceProcessor) -> Vocabulary:
    ids = range(tokenizer.vocab_size())
    return Vocabulary(
        pieces=[tokenizer.id_to_piece(i).encode() for i in ids],
        scores=[tokenizer.get_score(i) for i in ids],
        types=[_token_type(tokenizer, i) for i in ids],
    )


def _token_type(tokenizer: sentencepiece.SentencePieceProcessor, token: int) -> gguf.TokenType:
    if tokenizer.is_unknown(token):
        return gguf.TokenType.UNKNOWN
    if tokenizer.is_control(token):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if tokenizer.is_byte(token) else gguf.TokenType.NORMAL


def encode(tokenizer: sentencepiece.SentencePieceProcessor, documents: list[str]) -> Tensor:
    """All documents in one row of token ids, each between BOS and EOS."""
    rows = tokenizer.encode(documents, add_bos=True, add_eos=True)
    return torch.from_numpy(np.fromiter((t for row in rows for t in row), dtype=np.int64))


# ---------------------------------------------------------------- the model


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class Block(nn.Module):
    """One llama layer: attention with rotary positions, then a SwiGLU feed-forward."""

    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, dropout
        self.attn_norm = RMSNorm(shape.width, shape.rms_epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_v = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = RMSNorm(shape.width, shape.rms_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self._drop(self._attend(self.attn_norm(x), cos, sin))
        h = self.ffn_norm(x)
        return x + self._drop(self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h)))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q = rotate(self.attn_q(x).view(split), cos, sin).transpose(1, 2)
        k = rotate(self.attn_k(x).view(split), cos, sin).transpose(1, 2)
        v = self.attn_v(x).view(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the pairs (2i, 2i + 1), as ggml's llama has it."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Llama(nn.Module):
    """Input and output embeddings are one matrix: fewer weights to fit on little text."""

    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.output_norm = RMSNorm(shape.width, shape.rms_epsilon)
        exponents = torch.arange(0, shape.head_width, 2) / shape.head_width
        angles = torch.outer(torch.arange(shape.context), shape.rope_base**-exponents)
        self.register_buffer("cos", angles.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None, :], persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.token_embd.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2 and name != "token_embd.weight":
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] for token ids [batch, length]."""
        length = tokens.shape[1]
        cos, sin = self.cos[:, :length], self.sin[:, :length]
        x = F.dropout(self.token_embd(tokens), self.dropout, self.training)
        for block in self.blk:
            x = block(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors under their GGUF names."""
        for name, weight in self.named_parameters():
            yield name, weight.detach().float().numpy()
        yield "output.weight", self.token_embd.weight.detach().float().numpy()


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """How long and how hard to train. `minutes` of wall clock decide the schedule."""

    minutes: float
    batch: int
    dropout: float
    matrix_rate: float
    embedding_rate: float
    weight_decay: float
    seed: int


def rate_at(progress: float) -> float:
    """Learning-rate factor at progress 0…1: short warm-up, level, then linear to zero."""
    return min(progress / 0.01, 1.0, (1.0 - progress) / 0.6)


def optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    inside = [p for p in model.blk.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = [model.token_embd.weight]
    return [
        torch.optim.Muon(
            inside,
            lr=recipe.matrix_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": embedding, "weight_decay": recipe.weight_decay},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=recipe.embedding_rate,
            betas=(0.9, 0.98),
        ),
    ]


def windows(row: Tensor, length: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches [batch, length + 1] without end: each epoch tiles the row from a random offset."""
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        count = (len(row) - offset - 1) // length
        starts = offset + length * torch.randperm(count, generator=generator)
        for i in range(0, count - batch + 1, batch):
            yield torch.stack([row[s : s + length + 1] for s in starts[i : i + batch].tolist()])


def batches_of(
    row: Tensor, recipe: Recipe, context: int
) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """Short windows to learn words from, and whole ones to learn to use the context.

    Both hold the same number of tokens; a short window is half the context.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    whole = windows(row, context, recipe.batch, generator)
    return windows(row, context // 2, recipe.batch * 2, generator), whole


def loss_of(model: Llama, window: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(window[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(
    model: Llama, tokenizer: sentencepiece.SentencePieceProcessor, documents: list[str]
) -> float:
    """Total code length of the documents over their UTF-8 length; each starts from BOS alone."""
    model.eval()
    nats, size = 0.0, 0
    for document in documents:
        size += len(document.encode())
        tokens = encode(tokenizer, [document])
        for start in range(0, len(tokens) - 1, model.shape.context):
            window = tokens[None, start : start + model.shape.context + 1]
            nats += float(loss_of(model, window)) * (window.shape[1] - 1)
    model.train()
    return nats / math.log(2) / size


@torch.no_grad()
def sample(
    model: Llama,
    tokenizer: sentencepiece.SentencePieceProcessor,
    prompt: str,
    count: int = 80,
    temperature: float = 0.7,
) -> str:
    model.eval()
    tokens = tokenizer.encode(prompt, add_bos=True)
    for _ in range(count):
        logits = model(torch.tensor([tokens]))[0, -1].float() / temperature
        tokens.append(int(torch.multinomial(logits.softmax(-1), 1)))
        if tokens[-1] == tokenizer.eos_id():
            break
    model.train()
    return tokenizer.decode(tokens)


def train(
    model: Llama,
    recipe: Recipe,
    tokenizer: sentencepiece.SentencePieceProcessor,
    training: list[str],
    held_out: list[str],
    save: Path,
) -> None:
    """Train for `recipe.minutes`; every tenth of it, evaluate, sample and save to `save`."""
    row = encode(tokenizer, training)
    short, whole = batches_of(row, recipe, model.shape.context)
    compiled_loss = torch.compile(loss_of, dynamic=False)
    all_optimizers = optimizers(model, recipe)
    base_rates = [[g["lr"] for g in o.param_groups] for o in all_optimizers]
    print(f"{len(row):,} training tokens, {sum(map(len, training)):,} characters")

    started, seen, mean, next_report = time.monotonic(), 0, 0.0, 0.1
    with tqdm(total=round(recipe.minutes * 60), unit="s", mininterval=5) as bar:
        while (progress := (time.monotonic() - started) / (recipe.minutes * 60)) < 1.0:
            for optimizer, rates in zip(all_optimizers, base_rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * rate_at(progress)
            window = next(short if progress < 0.7 else whole)
            loss = compiled_loss(model, window)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in all_optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seen += window.numel()
            mean = 0.98 * (mean or loss.item()) + 0.02 * loss.item()
            bar.n = round(time.monotonic() - started)
            bar.set_postfix(loss=f"{mean:.3f}", epochs=f"{seen / len(row):.1f}", tokens=f"{seen:,}")
            if progress >= next_report:
                next_report += 0.1
                report(model, tokenizer, held_out)
                write(model, tokenizer, save)
    report(model, tokenizer, held_out)


def report(
    model: Llama, tokenizer: sentencepiece.SentencePieceProcessor, held_out: list[str]
) -> None:
    tqdm.write(f"held out: {bits_per_byte(model, tokenizer, held_out):.4f} bits per byte")
    tqdm.write(f"  {sample(model, tokenizer, 'Once upon a time')!r}")


def write(model: Llama, tokenizer: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Write the model beside `path`, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    write_llama(
        beside,
        model.shape,
        vocabulary_of(tokenizer),
        model.weights(),
        gguf.GGMLQuantizationType.Q8_0,
        name=path.stem.replace("-", " ").title(),
        description="A small demonstration model, trained on public-domain fairy tales.",
        license_name="mit",
    )
    beside.replace(path)


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    training, held_out = hold_out(read_stories(args.texts))
    print(f"training a vocabulary of {args.vocabulary:,} pieces")
    tokenizer = train_tokenizer(training, args.vocabulary)
    shape = LlamaShape(
        layers=args.layers,
        width=args.width,
        heads=args.width // 64,
        kv_heads=args.width // 64,
        hidden=args.hidden,
        vocabulary=args.vocabulary,
        context=args.context,
    )
    model = Llama(shape, args.dropout)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    recipe = Recipe(
        minutes=args.minutes,
        batch=args.batch,
        dropout=args.dropout,
        matrix_rate=args.matrix_rate,
        embedding_rate=args.embedding_rate,
        weight_decay=args.weight_decay,
        seed=args.seed,
    )
    train(model, recipe, tokenizer, training, held_out, args.output)
    write(model, tokenizer, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small llama-architecture model on a folder of texts."
    )
    add = parser.add_argument
    add("texts", type=Path, help="folder of UTF-8 .txt files, a blank line between paragraphs")
    add("-o", "--output", type=Path, default=Path("workers/bundled/fairy-tales.gguf"))
    add("--minutes", type=float, default=80, help="wall clock to train for (default: %(default)s)")
    add("--vocabulary", type=int, default=4096, help="pieces (default: %(default)s)")
    add("--layers", type=int, default=6, help="(default: %(default)s)")
    add("--width", type=int, default=256, help="a multiple of 64 (default: %(default)s)")
    add("--hidden", type=int, default=704, help="feed-forward width (default: %(default)s)")
    add("--context", type=int, default=512, help="tokens of a window (default: %(default)s)")
    add("--batch", type=int, default=8, help="windows of a step (default: %(default)s)")
    add("--dropout", type=float, default=0.1, help="(default: %(default)s)")
    add("--matrix-rate", type=float, default=6e-3, help="of Muon (default: %(default)s)")
    add("--embedding-rate", type=float, default=3e-3, help="of AdamW (default: %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="(default: %(default)s)")
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
