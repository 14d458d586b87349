"""The version, for setup.cfg and for `--version`, also in a checkout that is not installed."""

VERSION = "0.1.0"
