"""The version, here for setup.cfg and for `--version` in a checkout that is not installed."""

VERSION = "0.1.0"
