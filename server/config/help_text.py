"""How --help looks: as wide as the terminal, flags beside what they do, examples last."""

from __future__ import annotations

import argparse
import shutil

NARROWEST = 50
WIDEST = 100
"""Columns: longer lines are hard to read."""
FLAGS_WIDTH = 30

USAGE = """tokenflume [-m MODEL] [options]
       tokenflume tune [-m MODEL] [options]     (tune --help)"""

EXAMPLES = """examples:
  tokenflume
      the bundled model, that tells fairy tales, at http://127.0.0.1:8080
  tokenflume -m model.gguf -P 9000
      a model of your own, at another port
  tokenflume -m chat=big.gguf -m code=other.gguf
      two models, by the names that requests ask for
  tokenflume --models-dir models --memory-limit 12G
      all models of a folder, each loaded when it is asked for
  tokenflume --host 0.0.0.0 --api-key-file keys
      for others too, who need a key
  tokenflume tune -m model.gguf --write-config tuned.toml
  tokenflume --config tuned.toml
      with what is fastest here, by measuring
  tokenflume -m model.gguf --plan
      the cores, the limits and the workers that would run"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps options to the terminal, or to 80 columns where there is none."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        width = max(NARROWEST, min(WIDEST, columns)) - 2
        super().__init__(prog, max_help_position=FLAGS_WIDTH, width=width)
