"""The program: `tokenflume` and `python -m server`.

Every worker process imports this module when it is spawned, so it imports nothing of the front
at its top.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from server.standard_streams import (
        open_standard_streams,
        output_error,
        restart_in_utf8,
        written,
    )

    open_standard_streams()
    restart_in_utf8()
    from server.cli import run

    try:
        status: int = run(sys.argv[1:])
    except OSError:
        if output_error() is None:
            raise
        status = 0  # what was printed could not be written
    except SystemExit as end:  # argparse has printed its help, or an error
        if not isinstance(end.code, int):
            raise
        status = end.code
    sys.exit(written(status))


if __name__ == "__main__":
    main()
