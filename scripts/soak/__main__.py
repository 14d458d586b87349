"""Runs the soak test."""

import sys

from scripts.soak.command import main

if __name__ == "__main__":
    sys.exit(main())
