"""The models that are measured: made once by make_model.py, with random weights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.load.errors import BenchError

MODELS = Path(tempfile.gettempdir()) / f"tokenflume-models-{os.getuid()}"
"""Where they are by default."""


def make_model(folder: Path, shape: str, kind: str) -> Path:
    """The model of that shape and type in `folder`; made when it is not there. BenchError."""
    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        print(f"bench: making {path}", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--shape", shape, "--type", kind, "-o", path]
        command = [sys.executable, "-m", "scripts.modelling.make_model", *map(str, options)]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise BenchError("make_model.py failed")
    return path
