"""The command line: does what it asks for, and returns the exit status."""

from __future__ import annotations

import argparse
import os

from server.background import BackgroundTaskFailed
from server.cache_prompt import cache_prompt
from server.config.options import Options
from server.config.output import print_config
from server.config.resolve import build_parser, resolve_options
from server.config.settings import build_settings
from server.exit_status import ExitStatus, fail
from server.http.listener import CannotListen
from server.parts import ServerParts, make_parts
from server.standard_streams import output_failed
from server.version import VERSION
from shared.errors import ConfigurationError
from shared.logs import configure_logging
from workers.entry import run_worker
from workers.pool.child_process import Target


def run(arguments: list[str], target: Target = run_worker) -> ExitStatus:
    """Do what the command line says; `tune` as its first word is a command of its own.

    `target`: the function that worker processes run.
    """
    if arguments[:1] == ["tune"]:
        from server.tune.command import tune

        return tune(arguments[1:])
    parser = build_parser()
    given = parser.parse_args(arguments)
    resolved = resolve_options(parser, given, os.environ)
    if given.version:
        return _printed(f"tokenflume {VERSION}")
    if given.print_config:
        return _printed(print_config(resolved))
    return _run(given, resolved.values, target)


def _run(given: argparse.Namespace, options: Options, target: Target) -> ExitStatus:
    """Print the plan, save a prompt, or serve."""
    configure_logging(options.log_level, options.log_format)
    try:
        settings = build_settings(options)
        if given.plan:
            return _printed(settings.plan)
        if options.cache_prompt or options.prompt_file:
            return _printed(cache_prompt(settings, options.cache_prompt, options.prompt_file))
        parts = make_parts(settings, options, target)
    except CannotListen as error:
        return fail(ExitStatus.CANNOT_LISTEN, error)
    except (ConfigurationError, OSError) as error:
        return fail(ExitStatus.CONFIGURATION, error)
    except KeyboardInterrupt:  # during a long download, for example
        return ExitStatus.OK
    parts.start_view.begin()
    return _serve(parts)


def _serve(parts: ServerParts) -> ExitStatus:
    # Imported here because it takes a second, for which --plan and the like need not wait.
    from server.serving import serve_until_stopped

    try:
        serve_until_stopped(parts)
    except ConfigurationError as error:
        return fail(ExitStatus.CONFIGURATION, error)
    except BackgroundTaskFailed as error:
        return fail(ExitStatus.FAILED, error)
    except KeyboardInterrupt:  # before the signal handlers were in place
        pass
    return ExitStatus.OK


def _printed(text: str) -> ExitStatus:
    try:
        print(text)
    except OSError as error:
        return output_failed(error)
    return ExitStatus.OK
