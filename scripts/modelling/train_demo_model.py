"""Train a small llama-architecture language model on a folder of texts, and write it as GGUF.

    pip install -e '.[train]'
    python -m scripts.modelling.train_demo_model TEXTS --minutes 80 \\
        -o workers/bundled/fairy-tales.gguf

TEXTS is a folder of UTF-8 .txt files with a blank line between paragraphs. Tables of contents,
prefaces, footnotes and editors' notes are dropped; a heading begins a new story. One stretch in
30 of the text is held out: neither the weights nor the vocabulary see it. The loss that is
printed as "held out" is in bits per byte of it.
The defaults are those of the model that the project ships.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
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
from scripts.modelling.network import Llama
from scripts.modelling.stories import hold_out, read_stories

# ---------------------------------------------------------------- the vocabulary


def train_tokenizer(documents: list[str], size: int) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE tokenizer with byte fallback, as llama's architecture expects."""
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
    """The tokenizer's vocabulary, as a GGUF file stores it."""
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
    """The token ids of all documents in one row, each document between BOS and EOS."""
    rows = tokenizer.encode(documents, add_bos=True, add_eos=True)
    return torch.from_numpy(np.fromiter((t for row in rows for t in row), dtype=np.int64))


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """Settings of the training. `minutes` of wall clock time determine the schedule."""

    minutes: float
    batch: int
    dropout: float
    matrix_rate: float
    embedding_rate: float
    weight_decay: float
    seed: int


def rate_at(progress: float) -> float:
    """Learning rate factor at progress 0 to 1: a short warm-up, constant, then linear to zero."""
    return min(progress / 0.01, 1.0, (1.0 - progress) / 0.6)


def optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
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
    """Endless batches [batch, length + 1]. Each epoch tiles the row from a random offset."""
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        count = (len(row) - offset - 1) // length
        starts = offset + length * torch.randperm(count, generator=generator)
        for i in range(0, count - batch + 1, batch):
            yield torch.stack([row[s : s + length + 1] for s in starts[i : i + batch].tolist()])


def batches_of(
    row: Tensor, recipe: Recipe, context: int
) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """Batches of short windows, to learn words, and of full windows, to learn to use the context.

    Both have the same number of tokens; a short window is half the context.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    whole = windows(row, context, recipe.batch, generator)
    return windows(row, context // 2, recipe.batch * 2, generator), whole


def loss_of(model: Llama, window: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of predicting each token of the window [batch, length + 1]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(window[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


@contextlib.contextmanager
def evaluating(model: Llama) -> Iterator[None]:
    """Without dropout and gradients."""
    model.eval()
    with torch.no_grad():
        yield
    model.train()


def bits_per_byte(
    model: Llama, tokenizer: sentencepiece.SentencePieceProcessor, documents: list[str]
) -> float:
    """Code length of the documents over their UTF-8 length. Each starts with only a BOS."""
    nats, size = 0.0, 0
    with evaluating(model):
        for document in documents:
            size += len(document.encode())
            tokens = encode(tokenizer, [document])
            for start in range(0, len(tokens) - 1, model.shape.context):
                window = tokens[None, start : start + model.shape.context + 1]
                nats += float(loss_of(model, window)) * (window.shape[1] - 1)
    return nats / math.log(2) / size


def sample(
    model: Llama,
    tokenizer: sentencepiece.SentencePieceProcessor,
    prompt: str,
    count: int = 80,
    temperature: float = 0.7,
) -> str:
    """A text that begins with the prompt, of up to `count` further tokens."""
    tokens = tokenizer.encode(prompt, add_bos=True)
    with evaluating(model):
        for _ in range(count):
            logits = model(torch.tensor([tokens]))[0, -1].float() / temperature
            tokens.append(int(torch.multinomial(logits.softmax(-1), 1)))
            if tokens[-1] == tokenizer.eos_id():
                break
    return str(tokenizer.decode(tokens))


def train(
    model: Llama,
    recipe: Recipe,
    tokenizer: sentencepiece.SentencePieceProcessor,
    training: list[str],
    held_out: list[str],
    save: Path,
) -> None:
    """Train for `recipe.minutes`; after each tenth of it, evaluate, sample and save to `save`."""
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
    """Print the loss on held out text, and a sample."""
    tqdm.write(f"held out: {bits_per_byte(model, tokenizer, held_out):.4f} bits per byte")
    tqdm.write(f"  {sample(model, tokenizer, 'Once upon a time')!r}")


def write(model: Llama, tokenizer: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Write the model to a file beside `path`, then rename it, so that nobody reads half a file."""
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
    """Run the command."""
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
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.modelling.train_demo_model",
        description="Train a small llama-architecture model on a folder of texts.",
    )
    add = parser.add_argument
    add("texts", type=Path, help="folder of UTF-8 .txt files with a blank line between paragraphs")
    add("-o", "--output", type=Path, default=Path("workers/bundled/fairy-tales.gguf"))
    add(
        "--minutes",
        type=float,
        default=80,
        help="wall clock time of the training (default: %(default)s)",
    )
    add(
        "--vocabulary",
        type=int,
        default=4096,
        help="pieces of the vocabulary (default: %(default)s)",
    )
    add("--layers", type=int, default=6, help="layers (default: %(default)s)")
    add(
        "--width",
        type=int,
        default=256,
        help="embedding length, a multiple of 64 (default: %(default)s)",
    )
    add("--hidden", type=int, default=704, help="feed-forward length (default: %(default)s)")
    add("--context", type=int, default=512, help="tokens of a window (default: %(default)s)")
    add("--batch", type=int, default=8, help="windows of a training step (default: %(default)s)")
    add("--dropout", type=float, default=0.1, help="dropout probability (default: %(default)s)")
    add(
        "--matrix-rate",
        type=float,
        default=6e-3,
        help="learning rate of Muon (default: %(default)s)",
    )
    add(
        "--embedding-rate",
        type=float,
        default=3e-3,
        help="learning rate of AdamW (default: %(default)s)",
    )
    add("--weight-decay", type=float, default=0.1, help="of both optimizers (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of the training (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
