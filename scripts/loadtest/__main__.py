"""Runs the load test."""

import sys

from scripts.loadtest.command import main

if __name__ == "__main__":
    sys.exit(main())
