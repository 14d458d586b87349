"""What the processor is, and which of its instructions speed up inference.

Read from /proc/cpuinfo: `flags` on x86, `Features` on ARM.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Flag in /proc/cpuinfo and the name it goes by elsewhere, in the order they are reported.
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

# 64-bit ARM kernels give no `model name`; boards give their own name instead.
_MODEL_KEYS = ("model name", "Model", "Hardware")


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """The features that matter for inference and that every CPU has, in a fixed order.

    Names are the usual ones (`sse3`, `neon`, `dotprod`), not always those of /proc/cpuinfo
    (`pni`, `asimd`, `asimddp`). Empty when proc/cpuinfo below `root` cannot be read. Never raises.
    """
    flags = [set(value.split()) for key, value in _entries(root) if key in ("flags", "Features")]
    # A worker may be pinned to any CPU, so only what all of them share counts.
    common = set.intersection(*flags) if flags else set()
    return tuple(name for flag, name in _FEATURES if flag in common)


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's model name, or the board's on ARM; 'unknown' when neither is given."""
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
