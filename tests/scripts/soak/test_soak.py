"""The soak test: its judgements, and runs against servers that are good and bad."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.load.bodies import Expected
from scripts.load.client import Record, State
from scripts.load.errors import CONNECTION, CUT, ERROR_EVENT, TIMEOUT, WRONG, StreamFailure
from scripts.load.plan import Ask
from scripts.soak import command as soak
from scripts.soak.cases import FORMATS, KINDS, Case, World, crash, draw_case, echoed
from scripts.soak.judge import DIED, FAILURE, FULL, Broken, Death, Outcome, judge, unexplained
from scripts.soak.raw import BROKEN, Malformed, RawAnswer, draw_malformed, judge_malformed
from scripts.soak.report import report_text, text_rows
from scripts.soak.run import Account
from scripts.soak.watch import QUANTITIES, Sample, left_open, trend
from server.generation.submission import EXPIRED
from tests.helpers.paths import ROOT

WORLD = World(["echo"], is_echo=True, context=4096, before="User: ", after="\nAssistant:")

# ---------------------------------------------------------------- requests


def test_the_echo_is_known_to_the_character_and_a_character_that_is_cut_is_left_out() -> None:
    assert echoed("aé", 2, repeats=False) == "a"
    assert echoed("aé", 3, repeats=False) == "aé"
    assert echoed("aé", 100, repeats=False) == "aé"
    assert echoed("aé", 8, repeats=True) == "aéaéa"


def test_a_seed_decides_every_request_and_all_kinds_come() -> None:
    cases = [draw_case(WORLD, number, "1") for number in range(1000)]
    assert [draw_case(WORLD, number, "1") for number in range(1000)] == cases
    assert draw_case(WORLD, 0, "2") != cases[0]
    assert {case.kind for case in cases} == {kind.name for kind in KINDS}
    assert {case.format for case in cases} == set(FORMATS)
    prompts = [case.ask.prompt for case in cases]
    assert len(set(prompts)) == len(prompts)  # an answer to another would be seen


def test_of_a_model_only_that_answers_are_whole_is_known() -> None:
    world = replace(WORLD, is_echo=False, makes_vectors=False)
    cases = [draw_case(world, number, "1") for number in range(1000)]
    assert all(case.ask.text is None and case.prompt_tokens is None for case in cases)
    assert not any("[[" in case.ask.prompt for case in cases)
    assert not any(case.format in ("embeddings", "ollama-embed") for case in cases)


def test_a_poison_prompt_asks_for_its_workers_death() -> None:
    case = crash(WORLD, 1, random.Random(1))
    assert case.crashes
    assert "[[" in case.ask.prompt


# ---------------------------------------------------------------- judgements


def case(format_: str = "stream", **what: Any) -> Case:
    return Case("short", format_, Ask("prompt", 6, 1), prompt_tokens=6, **what)


def failed(kind: str, detail: str = "", *, retry_after: bool = False) -> Record:
    record = Record(0, 6, begun=1.0, counts=True)
    record.state, record.ended = State.FAILED, 2.0
    record.failure, record.says_retry_after = StreamFailure(kind, detail), retry_after
    return record


def waited(kind: str, detail: str) -> Record:
    record = failed(kind, detail, retry_after=True)
    record.ended += 10
    return record


@pytest.mark.parametrize(
    ("case", "record", "outcome"),
    [
        (case(), failed("HTTP 429", FULL, retry_after=True), Outcome.FULL),
        (case("ollama"), failed("HTTP 503", FULL, retry_after=True), Outcome.FULL),
        (case(), failed("HTTP 429", FULL), Outcome.LOST),
        (case(), failed("HTTP 503", f"the {DIED}"), Outcome.LOST),
        (case(), failed("HTTP 503", f"the {DIED}", retry_after=True), Outcome.DIED),
        (case(), failed("HTTP 503", "no worker is ready yet", retry_after=True), Outcome.NOT_READY),
        (case(), failed("HTTP 503", "no worker is left", retry_after=True), Outcome.LOST),
        (case(), waited("HTTP 503", "no worker is ready yet"), Outcome.LOST),
        (case(), failed("HTTP 503", "something else", retry_after=True), Outcome.LOST),
        (case(), failed(ERROR_EVENT, f"the {DIED}"), Outcome.DIED),
        (case(), failed(ERROR_EVENT, "no worker is ready yet"), Outcome.LOST),
        (case(), failed(CUT, "ended without its last line"), Outcome.LOST),
        (case("stream-plain"), failed(CUT), Outcome.CUT),
        (case("token-stream"), failed(CUT), Outcome.CUT),
        (case("openai"), failed(CUT), Outcome.LOST),
        (case("stream-plain", may_expire=True), failed(CUT), Outcome.EXPIRED),
        (case(may_expire=True), failed("HTTP 504", EXPIRED), Outcome.EXPIRED),
        (case(), failed("HTTP 504", EXPIRED), Outcome.LOST),
        (case(fails=True), failed("HTTP 500", FAILURE), Outcome.FAILED),
        (case(fails=True), failed(ERROR_EVENT, FAILURE), Outcome.FAILED),
        (case(), failed("HTTP 500", FAILURE), Outcome.SHARED),
        (case(), failed("HTTP 500", "an internal error"), Outcome.LOST),
        (case(), failed(WRONG, "'x' came where 'p' was due"), Outcome.LOST),
        (case(), failed(TIMEOUT), Outcome.LOST),
        (case(), failed(CONNECTION, "closed before an answer"), Outcome.LOST),
    ],
)
def test_what_is_neither_an_answer_nor_a_clear_error_is_lost(
    case: Case, record: Record, outcome: Outcome
) -> None:
    assert judge(case, record).outcome is outcome


def test_a_whole_answer_of_a_request_that_asked_for_a_failure_is_lost() -> None:
    whole = Record(0, 6, begun=1.0, counts=True, state=State.WHOLE)
    assert judge(case(), whole).outcome is Outcome.WHOLE
    assert judge(case(fails=True), whole).outcome is Outcome.LOST
    assert judge(case(crashes=True), whole).outcome is Outcome.LOST


def test_what_a_death_explains_ends_between_the_blow_and_the_replacement() -> None:
    deaths = [Death("SIGKILL", begun=10.0, ended=11.0)]
    assert unexplained([Broken(case(), Outcome.DIED, 1.0, 10.5)], deaths, [], slots=4) == []
    for ended in (9.9, 20.0):
        found = unexplained([Broken(case(), Outcome.NOT_READY, 1.0, ended)], deaths, [], slots=4)
        assert found == ["short, stream: not ready, but no worker died then"]


def test_a_death_ends_no_more_requests_than_had_a_slot() -> None:
    deaths = [Death("SIGKILL", 10.0, 11.0), Death("SIGKILL", 30.0, 31.0)]
    broken = [Broken(case(), Outcome.DIED, 1.0, 30.5)] * 5
    assert unexplained(broken[:4], deaths, [], slots=4) == []
    (found,) = unexplained(broken, deaths, [], slots=4)
    assert found == ("SIGKILL ended 5 requests, but 4 had a slot: some were waiting, and are lost")
    questions = [Broken(case("tokenize"), Outcome.DIED, 1.0, 30.5)] * 5  # they need no slot
    assert unexplained(questions, deaths, [], slots=4) == []
    together = [replace(deaths[1], begun=29.9), deaths[1]]
    assert unexplained(broken, together, [], slots=4) == []


def test_a_failure_explains_others_of_its_step_and_nothing_later() -> None:
    broken = [Broken(case(), Outcome.SHARED, 1.0, 5.0)]
    assert unexplained(broken, [], [(4.0, 5.0)], slots=4) == []
    assert unexplained(broken, [], [(1.0, 2.0)], slots=4) == [
        "short, stream: it failed, and nobody asked"
    ]


@pytest.mark.parametrize(
    ("format_", "answer", "is_good"),
    [
        ("openai-whole", b'{"choices":[{"text":"ab","finish_reason":"length"}],"usage":'
         b'{"prompt_tokens":2,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}',
         True),
        ("openai-whole", b'{"choices":[{"text":"a","finish_reason":"length"}],"usage":'
         b'{"prompt_tokens":2,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}',
         False),
        ("openai-whole", b'{"choices":[{"text":"ab","finish_reason":"length"}],"usage":'
         b'{"prompt_tokens":2,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":0}}}',
         False),
        ("tokenize", b'{"tokens":[97,98]}', True),
        ("tokenize", b'{"tokens":[97]}', False),
        ("tokenize", b'{"tokens":', False),
        ("embeddings", b'{"data":[{"embedding":[%s]}]}' % b",".join(
            [b"0"] * 33 + [b"0.70710678"] * 2 + [b"0"] * 29), True),
        ("embeddings", b'{"data":[{"embedding":[%s]}]}' % b",".join(
            [b"1"] + [b"0"] * 63), False),
        ("stream-plain", b"a\nb\n", True),
        ("stream-plain", b"a\nc\n", False),
        ("token-stream", b"ab", True),
        ("token-stream", b"a", False),
        ("token-stream", b"ba", False),
    ],
)  # fmt: skip
def test_an_answer_of_known_text_is_compared_with_it(
    format_: str, answer: bytes, is_good: bool
) -> None:
    body = FORMATS[format_].body(Expected(2, text="ab"))
    try:
        body.feed(answer)
        body.end()
        found = True
    except StreamFailure:
        found = False
    assert found is is_good


def test_nonsense_must_be_refused_with_its_status_and_a_reason() -> None:
    request = Malformed("no JSON", b"", (400,))
    reason = b'{"error":{"code":"invalid_request"}}'
    assert not judge_malformed(request, RawAnswer(400, "", reason))
    assert "200 instead of 400" in judge_malformed(request, RawAnswer(200, "", b"{}"))
    assert "0 instead of 400" in judge_malformed(request, RawAnswer(0, "", b""))
    assert judge_malformed(request, RawAnswer(400, "", b"")) == "400 without a reason"
    assert judge_malformed(request, RawAnswer(503, "", reason)) == "503 without Retry-After"
    assert not judge_malformed(request, RawAnswer(503, "retry-after: 1\r\n", reason))
    names = {draw_malformed(random.Random(seed)).name for seed in range(2000)}
    assert {each.name for each in BROKEN} <= names


# ---------------------------------------------------------------- growth

REST = Sample(0.0, 40.0, 30.0, 20, 1, 2, 60.0, 40.0, 9.0, 4.0, 20.0, 0)


def samples(of: Any) -> list[Sample]:
    chance = random.Random(1)
    return [
        replace(REST, at=float(at), front_rss=of(at) + chance.uniform(-2, 2)) for at in range(200)
    ]


@pytest.mark.parametrize(
    ("of", "grows"),
    [
        (lambda at: 40.0, False),
        (lambda at: 40 + at * 0.1, True),
        (lambda at: 40 + 60 * (1 - 0.95**at), False),  # it warms up, and levels off
        (lambda at: 40.0 + 30 * (at % 20 == 0), False),  # peaks
        (lambda at: 40.0 + 20 * (at >= 100), False),  # a step
        (lambda at: 80 - at * 0.1, False),
        (lambda at: 40 + at * 0.1 - 30 * (at % 10 == 0), True),  # a leak with dips
    ],
)
def test_a_leak_goes_on_and_what_warms_up_levels_off(of: Any, grows: bool) -> None:
    assert trend(QUANTITIES[0], samples(of)).grows is grows


def test_of_few_samples_nothing_is_said() -> None:
    found = trend(QUANTITIES[0], samples(lambda at: 40 + 30 * at)[:8])
    assert found.growth is None
    assert found.grows is False


def test_files_that_stay_open_are_told() -> None:
    assert left_open(REST, replace(REST, front_files=28, front_rss=400.0)) == []
    assert left_open(REST, replace(REST, front_files=29)) == [
        "front, open files: 20 at rest before, 29 after"
    ]


def test_a_chart_is_as_high_as_its_values() -> None:
    assert text_rows([1, 2, 3, 4], 4, 1) == ["▁▃▅█"]
    assert text_rows([0, 8], 4, 2) == ["  ██", "▁▁██"]
    assert text_rows([100.0, 100.1], 2, 1) == ["▁▁"]  # hardly a change


def test_an_account_says_what_is_wrong_and_a_soak_without_a_request_is_not_clean() -> None:
    account = Account()
    assert not account.is_clean
    account.outcomes["short", Outcome.WHOLE] += 3
    account.samples = samples(lambda at: 40.0)
    assert account.is_clean
    assert report_text(account).endswith("or a clear error, and nothing grows")
    account.lost.append("after 3.0 s: short, stream: cut")
    assert not account.is_clean
    assert "  after 3.0 s: short, stream: cut" in report_text(account)
    account.lost.clear()
    account.samples = samples(lambda at: 40 + at)
    assert "NOT CLEAN: grows: front, RSS" in report_text(account)


# ---------------------------------------------------------------- options


def test_what_stands_behind_two_dashes_is_the_servers(tmp_path: Path) -> None:
    job = soak.parse_arguments(["--minutes", "2", "-m", "a.gguf", "--", "--slots", "3", "-m", "b"])
    assert job.load.seconds == 120
    assert job.models == ["a.gguf"]
    flags = soak.server_flags(job, tmp_path)
    assert flags[flags.index("-m") + 1] == "a.gguf"
    assert flags[-8:] == ["--slots", "3", "-m", "b", "--host", "127.0.0.1", "-P", "0"]


@pytest.mark.parametrize(
    "arguments",
    [["--minutes", "0"], ["--kill-every", "-1"], ["--clients", "0"], ["-m", "x", "--models", "2"]],
)
def test_bad_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        soak.parse_arguments(arguments)
    assert exit_.value.code == 2
    assert arguments[-2] in capsys.readouterr().err


# ---------------------------------------------------------------- real runs


def soaked(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "soak.py"), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_server_whose_workers_die_every_two_seconds_loses_nothing(tmp_path: Path) -> None:
    page = tmp_path / "soak.html"
    found = soaked("--minutes", "0.2", "--kill-every", "2", "--hang-up-every", "4",
                   "--report", str(page))  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "CLEAN: no request without an answer or a clear error" in found.stdout
    assert "deaths of workers" in found.stdout
    assert "front, RSS, MiB" in found.stdout
    assert page.read_text().count("<svg") == len(QUANTITIES)
    assert "http" not in page.read_text().replace("http.", "")


def test_several_models_are_asked(tmp_path: Path) -> None:
    found = soaked("--minutes", "0.08", "--kill-every", "0", "--models", "2")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "no worker was killed" in found.stdout


STAND_IN = """
import os
import sys
import threading
sys.path.insert(0, {root!r})
import server.dialects.newline as newline
import server.dialects.base as base
import server.generation.relay as relay
from server.cli import run

def sabotage():
{sabotage}

if __name__ == "__main__":
    sabotage()
    sys.exit(run(sys.argv[1:]))
"""
SABOTAGE = {
    "drops the ends of streams": (
        "    newline.NdjsonRenderer.finished = lambda *_: b''",
        "ended without its last line",
    ),
    "swallows what a failed stream has to say, and looks finished": (
        "    take = newline.PlainTextRenderer.tokens\n"
        "    newline.PlainTextRenderer.tokens = lambda self, i, t: take(self, i, t[:-1])",
        "stream-plain: wrong content",
    ),
    "leaks memory": (
        "    held, submitted = [], relay.submitted\n"
        "    relay.submitted = lambda *a: held.append(b'x' * 2**20) or submitted(*a)",
        "grows: front, RSS",
    ),
    "leaves files open": (
        "    submitted = relay.submitted\n"
        "    relay.submitted = lambda *a: os.dup(0) and submitted(*a)",
        "front, open files",
    ),
    "says no Retry-After": (
        "    from shared.errors import QueueFull\n"
        "    plain = base.error_response\n"
        "    def response(error, body):\n"
        "        error.retry_after_s = None\n"
        "        return plain(error, body)\n"
        "    base.error_response = response",
        "without Retry-After",
    ),
    "dies": (
        "    threading.Timer(4, os._exit, [7]).start()",
        "the front died: status 7",
    ),
}


def soaked_with(sabotage: str, program: Path) -> subprocess.CompletedProcess[str]:
    program.write_text(STAND_IN.format(root=str(ROOT), sabotage=sabotage))
    return soaked("--minutes", "0.12", "--kill-every", "0", "--clients", "40",
                  "--command", f"{sys.executable} {program}")  # fmt: skip


@pytest.fixture(scope="module")
def misbehaving(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Soaks of all of them, some at a time: each mostly waits."""
    folder = tmp_path_factory.mktemp("stand_ins")
    with ThreadPoolExecutor(max_workers=3) as pool:
        yield {
            name: pool.submit(soaked_with, sabotage, folder / f"{place}.py")
            for place, (name, (sabotage, _)) in enumerate(SABOTAGE.items())
        }


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_server_that_misbehaves_is_found_out(
    name: str, misbehaving: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    _, complaint = SABOTAGE[name]
    found = misbehaving[name].result()
    assert found.returncode == 1, found.stdout + found.stderr
    assert "NOT CLEAN" in found.stdout
    assert complaint in found.stdout


def test_ctrl_c_prints_what_there_is() -> None:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "soak.py"), "--minutes", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stderr is not None
        assert "requests" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "(interrupted: this is what there was until then)" in output
    assert "front, RSS, MiB" in output


def test_a_server_that_does_not_start_is_told() -> None:
    found = soaked("--minutes", "0.1", "--", "--slots", "0")
    assert found.returncode == 3
    assert "--slots" in found.stderr
