"""Figures of the runs of one load on one server, taken together."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scripts.load.record import Record, State
from scripts.loadtest.run import Run
from scripts.report.stats import (
    Bin,
    Spread,
    jain,
    latency_spread,
    log_histogram,
    per_bin,
    percentile,
    rate_spread,
)

BUSY = 0.8
"""Share of a core over which the load generator may have been the bottleneck."""
LATE_S = 0.01
"""Lag of its event loop (p99), in seconds, over which it may have been the bottleneck."""
MOST_BINS = 120
WIDTHS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)
SECOND = 1.0
EXAMPLES = 3
"""Messages that are kept of each kind of failure."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Streams that failed with the same kind of failure."""

    kind: str
    count: int
    examples: Sequence[str]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Tokens per second, from the start of a run to its last token.

    Times are in seconds since the start.
    """

    width_s: float
    rates: Sequence[float]
    counted_from_s: float
    counted_to_s: float


@dataclass(frozen=True, slots=True)
class Generator:
    """The load generator's own use of the CPU."""

    cpu_share: float
    """Share of one core; the highest of all runs."""
    lag_p99_s: float
    """Lag of its event loop; the highest of all runs."""
    lag_max_s: float

    @property
    def warning(self) -> str | None:
        """Why the load generator may have been the bottleneck; None: it was not."""
        reasons = []
        if self.cpu_share > BUSY:
            reasons.append(f"it took {self.cpu_share:.0%} of a core (limit: {BUSY:.0%})")
        if self.lag_p99_s > LATE_S:
            reasons.append(
                f"its event loop lagged by {self.lag_p99_s * 1000:.0f} ms or more in 1 % of the"
                f" time (limit: {LATE_S * 1000:.0f} ms), because of its own work or that of other"
                " processes"
            )
        if not reasons:
            return None
        return f"the load generator may have been the bottleneck: {' and '.join(reasons)}"


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of all rounds of a load on a server. Times are in seconds."""

    rounds: int
    requests: int
    """Requests that began in the time that counts."""
    completed: int
    cancelled: int
    """Requests whose client disconnected, as planned."""
    unfinished: int
    """Requests that were running when the measurement was interrupted."""
    failures: Sequence[Failures]
    warm_up_failures: Sequence[Failures]
    """Failures of requests in the warm-up."""
    seconds: float
    """Length of the time that counts."""
    tokens: int
    """Tokens that arrived in that time."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the server had cached. Both are as far as the server reports them."""
    unshown_tokens: int
    """Tokens by the server's count that had no event of their own."""
    bunched: float | None
    """Share of the tokens that were read together with the one before, from 0 to 1."""
    ttft: Spread | None
    itl: Spread | None
    e2e: Spread | None
    stream_rate: Spread | None
    """Tokens per second of each stream, including its waiting."""
    second_rate: Spread | None
    """Tokens of all streams in each second."""
    fairness: float | None
    """Jain's index of the rates of the streams."""
    stream_rates: Sequence[float]
    itl_bins: Sequence[Bin]
    ttft_bins: Sequence[Bin]
    e2e_bins: Sequence[Bin]
    timeline: Timeline
    """The timeline of the first round."""
    generator: Generator
    is_complete: bool

    @property
    def failed(self) -> int:
        return sum(kind.count for kind in self.failures)

    @property
    def is_clean(self) -> bool:
        """There were requests, and none failed."""
        return self.requests > 0 and not self.failures and not self.warm_up_failures

    @property
    def token_rate(self) -> float:
        """Tokens per second of all streams."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def request_rate(self) -> float:
        """Completed answers per second."""
        return self.completed / self.seconds if self.seconds else 0.0


def summarize(runs: Sequence[Run]) -> Summary:
    """The figures of all runs of a load on a server."""
    records = [record for run in runs for record in run.records if record.counts]
    warm_up = [record for run in runs for record in run.records if not record.counts]
    states = Counter(record.state for record in records)
    good = [record for record in records if record.state in (State.COMPLETED, State.CANCELLED)]
    completed = [record for record in records if record.state is State.COMPLETED]
    gaps = [gap for record in good for gap in _gaps(record)]
    ttfts = [record.arrivals[0] - record.begun for record in good if record.arrivals]
    ends = [record.ended - record.begun for record in completed]
    rates = list(_stream_rates(runs))
    usages = [record.usage for record in completed if record.usage is not None]
    return Summary(
        rounds=len(runs),
        requests=len(records),
        completed=states[State.COMPLETED],
        cancelled=states[State.CANCELLED],
        unfinished=states[State.OPEN],
        failures=_failures(records),
        warm_up_failures=_failures(warm_up),
        seconds=math.fsum(run.end - run.start for run in runs),
        tokens=sum(_tokens_within(run) for run in runs),
        prompt_tokens=sum(usage.prompt or 0 for usage in usages),
        cached_tokens=sum(usage.cached or 0 for usage in usages),
        unshown_tokens=sum(map(_unshown_tokens, completed)),
        bunched=sum(gap == 0 for gap in gaps) / len(gaps) if gaps else None,
        ttft=latency_spread(ttfts),
        itl=latency_spread(gaps),
        e2e=latency_spread(ends),
        stream_rate=rate_spread(rates),
        second_rate=rate_spread(itertools.chain.from_iterable(map(_seconds, runs))),
        fairness=jain(rates),
        stream_rates=sorted(rates, reverse=True),
        itl_bins=log_histogram(gaps),
        ttft_bins=log_histogram(ttfts),
        e2e_bins=log_histogram(ends),
        timeline=_timeline(runs[0]),
        generator=_generator(runs),
        is_complete=all(run.is_complete for run in runs),
    )


def _gaps(record: Record) -> Iterator[float]:
    times = record.arrivals
    return (later - earlier for earlier, later in itertools.pairwise(times))


def _unshown_tokens(record: Record) -> int:
    if record.usage is None or record.usage.completion is None:
        return 0
    return record.usage.completion - len(record.arrivals)


def _failures(records: Sequence[Record]) -> list[Failures]:
    kinds: dict[str, list[str]] = {}
    for record in records:
        if record.failure is not None:
            kinds.setdefault(record.failure.kind, []).append(record.failure.detail)
    return [
        Failures(kind, len(details), list(dict.fromkeys(details))[:EXAMPLES])
        for kind, details in sorted(kinds.items(), key=lambda item: -len(item[1]))
    ]


def _tokens_within(run: Run) -> int:
    return sum(run.start <= when <= run.end for record in run.records for when in record.arrivals)


def _stream_rates(runs: Sequence[Run]) -> Iterator[float]:
    """The rate of each stream of each run: tokens of its completed answers over their time."""
    for run in runs:
        tokens: dict[int, int] = defaultdict(int)
        seconds: dict[int, float] = defaultdict(float)
        for record in run.records:
            if record.counts and record.state is State.COMPLETED:
                tokens[record.stream] += len(record.arrivals)
                seconds[record.stream] += record.ended - record.begun
        yield from (tokens[stream] / seconds[stream] for stream in tokens if seconds[stream])


def _seconds(run: Run) -> list[int]:
    """Tokens in each full second."""
    times = (when for record in run.records for when in record.arrivals)
    return per_bin(times, run.start, SECOND, math.floor(run.end - run.start))


def _timeline(run: Run) -> Timeline:
    last = max((record.ended for record in run.records), default=run.end)
    length = max(last, run.end) - run.begun
    width = next((width for width in WIDTHS_S if length / width <= MOST_BINS), WIDTHS_S[-1])
    times = (when for record in run.records for when in record.arrivals)
    counts = per_bin(times, run.begun, width, math.ceil(length / width))
    return Timeline(
        width, [count / width for count in counts], run.start - run.begun, run.end - run.begun
    )


def _generator(runs: Sequence[Run]) -> Generator:
    lags = [run.lags for run in runs if run.lags]
    return Generator(
        cpu_share=max(run.cpu_share for run in runs),
        lag_p99_s=max((percentile(lag, 99) for lag in lags), default=0.0),
        lag_max_s=max((max(lag) for lag in lags), default=0.0),
    )


# ---------------------------------------------------------------- two servers


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quantity of the second server over that of the first, with one value for each round."""

    name: str
    higher_is_better: bool
    values: Sequence[float]


def _of(spread: Spread | None, name: str) -> float:
    """A value of the spread; 0 without a spread."""
    return 0.0 if spread is None else float(getattr(spread, name))


def compare(first: Sequence[Run], second: Sequence[Run]) -> list[Ratio]:
    """The ratios of each round. A quantity that a server lacks in a round is left out."""
    pairs = [(summarize([a]), summarize([b])) for a, b in zip(first, second, strict=False)]
    found = []
    for name, higher_is_better, read in QUANTITIES:
        values = [(read(a), read(b)) for a, b in pairs]
        ratios = [b / a for a, b in values if a and b]
        if ratios and len(ratios) == len(pairs):
            found.append(Ratio(name, higher_is_better, ratios))
    return found


QUANTITIES: Sequence[tuple[str, bool, Callable[[Summary], float]]] = (
    ("tokens/s", True, lambda summary: summary.token_rate),
    ("TTFT p50", False, lambda summary: _of(summary.ttft, "p50")),
    ("TTFT p99", False, lambda summary: _of(summary.ttft, "p99")),
    ("ITL mean", False, lambda summary: _of(summary.itl, "mean")),
    ("ITL p99", False, lambda summary: _of(summary.itl, "p99")),
    ("end to end p50", False, lambda summary: _of(summary.e2e, "p50")),
    ("end to end p99", False, lambda summary: _of(summary.e2e, "p99")),
)
