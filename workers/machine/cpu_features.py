"""The processor's model, and which of its instruction sets speed up inference.

Both come from /proc/cpuinfo. Its key for instruction sets is `flags` on x86, `Features` on ARM.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Each flag in /proc/cpuinfo with its usual name, in the order of the report.
_FEATURES = (
    ("pni", "sse3"),  # Prescott New Instructions, which is how Linux spells SSE3
    ("ssse3", "ssse3"),
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("f16c", "f16c"),
    ("fma", "fma"),
    ("avx512f", "avx512f"),
    ("avx512bw", "avx512bw"),
    ("avx512vbmi", "avx512vbmi"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx_vnni", "avx_vnni"),
    ("amx_int8", "amx_int8"),
    ("amx_bf16", "amx_bf16"),
    ("asimd", "neon"),
    ("asimddp", "dotprod"),
    ("i8mm", "i8mm"),
    ("sve", "sve"),
)

# 64-bit ARM kernels have no `model name`, but some name the board.
_MODEL_KEYS = ("model name", "Model", "Hardware")


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """The features that matter for inference and that every CPU has, in a fixed order.

    The names are the usual ones (`sse3`, `neon`, `dotprod`), which may differ from those of
    /proc/cpuinfo (`pni`, `asimd`, `asimddp`). Empty if proc/cpuinfo below `root` cannot be read.
    """
    flags = [set(value.split()) for key, value in _entries(root) if key in ("flags", "Features")]
    # A worker may be pinned to any CPU, so only features of all CPUs count.
    common = set.intersection(*flags) if flags else set()
    return tuple(name for flag, name in _FEATURES if flag in common)


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's model name, or on ARM the board's; "unknown" without both."""
    found = {key: value for key, value in _entries(root) if value}
    return next((found[key] for key in _MODEL_KEYS if key in found), "unknown")


def _entries(root: Path) -> Iterator[tuple[str, str]]:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            yield key.strip(), value.strip()
