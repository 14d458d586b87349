"""The program: `tokenflume` and `python -m server`.

Every worker process imports this module when it is spawned, so it imports nothing of the front
at its top.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from server.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
