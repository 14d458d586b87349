"""Options as the command line and an environment give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.config.options import Options, ResolvedOptions
from server.config.resolve import build_parser, resolve_options


def resolved(arguments: Sequence[str], environment: Mapping[str, str]) -> ResolvedOptions:
    parser = build_parser()
    return resolve_options(parser, parser.parse_args(arguments), environment)


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    return resolved(arguments, environment).values
