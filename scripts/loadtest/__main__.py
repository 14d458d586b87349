"""The load test: see command.py."""

import sys

from scripts.loadtest.command import main

if __name__ == "__main__":
    sys.exit(main())
