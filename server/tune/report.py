"""The result of tune: memory, a table, a chart, and the options with reasons; or a file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from server.config.options import OPTIONS
from server.config.output import setting
from server.terminal.style import Style, bar, size_text
from server.tune.measure import PromptFigure
from server.tune.search import NOISE, Advice, Tuned, score
from workers.engines.memory_plan import MemoryPlan
from workers.machine.cores import counted

INDENT = "  "
CHART_COLUMNS = 36
BUSY = 0.1
"""Share of the cores: other programs that use more disturb the measurement."""


def memory_lines(memory: MemoryPlan, available: int | None, style: Style) -> Iterator[str]:
    """The memory that the model will take, before it is loaded."""
    free = "" if available is None else f" of {size_text(available)} free"
    yield style.bold("Memory") + f"  about {size_text(memory.total_bytes)}{free}"
    yield f"{INDENT}{size_text(memory.weight_bytes):>9}  weights, shared by the workers"
    if memory.repacked_bytes:
        yield f"{INDENT}{size_text(memory.repacked_bytes):>9}  rearranged weights, at most"
    yield (
        f"{INDENT}{size_text(memory.kv_bytes):>9}  KV cache: {memory.slots} streams,"
        f" {size_text(memory.slot_bytes)} each"
    )
    yield f"{INDENT}{size_text(memory.process_bytes):>9}  worker processes"
    if available is not None:
        yield f"{INDENT}{size_text(available - memory.total_bytes):>9}  remain free"


def report_lines(tuned: Tuned, style: Style, columns: int) -> Iterator[str]:
    """The whole report, except for the memory."""
    yield ""
    yield style.bold("Measured") + "  tokens/s of all streams together; time to first token"
    yield from _table(tuned, style, columns)
    yield from (f"{INDENT}{style.dim(line)}" for line in _untried(tuned))
    yield ""
    yield style.bold("Expected") + "  with the options below"
    yield from _chart(tuned, style, columns)
    yield from _prompt_lines(tuned)
    yield ""
    yield style.bold("Options")
    if not tuned.advice:
        yield f"{INDENT}none: nothing else was measured; try more --seconds"
    yield from (f"{INDENT}{style.bold(line)}" for line in _warning(tuned))
    width = max((len(_flag(item)) for item in tuned.advice), default=0)
    for item in tuned.advice:
        flag = _flag(item)
        yield f"{INDENT}{style.accent(flag)}{' ' * (width - len(flag))}  {item.reason}"


def _table(tuned: Tuned, style: Style, columns: int) -> Iterator[str]:
    streams = list(tuned.trials[0].figures.rates)
    words = tuned.trials[0].figures.prompt.words
    heads = "".join(f"{n:>8}" for n in streams) + f"{f'{words} words':>11}{'overall':>9}"
    name_width = min(max(len(trial.name) for trial in tuned.trials), columns - 2 - len(heads))
    yield INDENT + style.dim(f"{'streams':<{name_width}}{heads}")
    for trial in tuned.trials:
        rates = "".join(f"{_number(trial.figures.rates[n]):>8}" for n in streams)
        first = f"{_seconds(trial.figures.prompt):>11}"
        factor = score(trial.figures, tuned.trials[0].figures)
        yield f"{INDENT}{trial.name[:name_width]:<{name_width}}{rates}{first}{factor:>8.2f}x"


def _untried(tuned: Tuned) -> Iterator[str]:
    yield f"differences below {NOISE - 1:.0%} do not count"
    yield from (f"not tried: {text}" for text in tuned.untried)


def _warning(tuned: Tuned) -> Iterator[str]:
    if tuned.busy > BUSY:
        yield f"Other programs used {tuned.busy:.0%} of the cores: measure again without them."


def _chart(tuned: Tuned, style: Style, columns: int) -> Iterator[str]:
    if tuned.figures is None:
        return
    rates = tuned.figures.rates
    width = min(CHART_COLUMNS, columns - 40)
    most = max(rates.values()) or 1.0
    for streams, rate in rates.items():
        noun = "stream " if streams == 1 else "streams"
        drawn = f"{bar(rate / most, width):<{width}}"
        each = f"  {_number(rate / streams)} each" if streams > 1 and rate else ""
        yield f"{INDENT}{streams:>3} {noun}  {style.accent(drawn)} {_number(rate)} tokens/s{each}"


def _prompt_lines(tuned: Tuned) -> Iterator[str]:
    if tuned.figures is None:
        return
    alone = tuned.figures.prompt
    yield f"{INDENT}first token of {alone.words} words: {_seconds(alone)}"
    for limit, figure in sorted(tuned.stalls.items()):
        streams = counted(figure.streams, "stream")
        yield (
            f"{INDENT}with {streams}, max-stall {limit:g}: {_seconds(figure.prompt)};"
            f" streams pause {figure.stall_s * 1000:.0f} ms instead of"
            f" {figure.usual_s * 1000:.0f} ms"
        )


def config_text(tuned: Tuned, given: Mapping[str, object]) -> str:
    """A file for --config: the options that were given, and the advice."""
    by_name = {option.name: option for option in OPTIONS}
    lines = ["# Measured by `tokenflume tune` on this machine."]
    lines += [f"# {line}" for line in _warning(tuned)]
    lines.append("")
    lines += [setting(by_name[name], value) for name, value in given.items()]
    for item in tuned.advice:
        lines.append(f"{setting(by_name[item.option], item.value)}  # {item.reason}")
    return "\n".join(lines) + "\n"


def command_text(tuned: Tuned, given: Mapping[str, object]) -> str:
    """The command that serves with these options."""
    words = ["tokenflume"]
    for name, value in given.items():
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{name.replace('_', '-')}", str(one)]
    for item in tuned.advice:
        words += _flag(item).split()
    return shlex.join(words)


def _flag(advice: Advice) -> str:
    value = advice.value
    written = f"{value:g}" if isinstance(value, float) else str(value)
    return f"--{advice.option.replace('_', '-')} {written}"


def _seconds(figure: PromptFigure) -> str:
    about = "~" if figure.is_estimate else ""
    value = figure.seconds
    return f"{about}{value * 1000:.0f} ms" if value < 0.9995 else f"{about}{value:.1f} s"


def _number(rate: float) -> str:
    if not rate:
        return "?"  # too few tokens were generated
    return f"{rate:,.0f}" if rate >= 99.5 else f"{rate:.1f}"
