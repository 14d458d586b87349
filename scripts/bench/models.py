"""The models that are measured: made once, with random weights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.load.errors import MeasurementError

STDERR = 2
MODELS = Path(tempfile.gettempdir()) / f"tokenflume-models-{os.getuid()}"
"""Their default folder."""


def make_model(folder: Path, shape: str, kind: str) -> Path:
    """The model of this shape and type in `folder`; it is made if it does not exist.

    Raises MeasurementError if it cannot be made.
    """
    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        print(f"bench: making {path}", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--shape", shape, "--type", kind, "-o", path]
        command = [sys.executable, "-m", "scripts.modelling.make_model", *map(str, options)]
        if subprocess.run(command, stdout=STDERR, check=False).returncode != 0:
            raise MeasurementError("make_model failed")
    return path
