"""Every option: as a flag, in the environment, flag over environment, and a bad value's end."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, asdict, dataclass, fields
from ipaddress import ip_network
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from server.config.options import OPTIONS, Options
from server.config.resolve import build_parser
from tests.helpers.options import read_options
from tests.helpers.paths import ROOT

STATUS_2 = 2
SWITCHES = ("--mlock", "--repack", "--insecure", "--log-prompts")
"""Options that need no value."""


@dataclass(frozen=True)
class Case:
    """An option as the documentation has it, with values that it takes and refuses."""

    flags: tuple[str, ...]
    default: Any
    good: dict[str, Any]
    """Text and value; at least two."""
    bad: tuple[str, ...] = ()

    @property
    def long(self) -> str:
        return self.flags[-1]

    @property
    def name(self) -> str:
        return self.long[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        return "TOKENFLUME_" + self.name.upper()


NO_INTEGERS = ("", " ", "x", "1.5", "1e3", "+-5", "0x10", "1_000", "9" * 5000)
NO_NUMBERS = ("", "x", "nan", "inf", "-inf", "1e999", "1,5")
SECONDS = {"0.5": 0.5, "7": 7.0, "86400": 86400.0}
NO_SECONDS = (*NO_NUMBERS, "0", "-1", "86401")

CASES = (
    Case(("-m", "--model"), (), {"a.gguf": ("a.gguf",), "chat=/b": ("chat=/b",)}),
    Case(("--models-dir",), None, {"models": Path("models"), "/b": Path("/b")}),
    Case(
        ("--memory-limit",),
        None,
        {"0": 0, "1000": 1000, "12G": 12 * 2**30},
        ("", "x", "-1", "1.5G", "1GB"),
    ),
    Case(
        ("--engine",),
        "auto",
        {"echo": "echo", "ctransformers": "ctransformers", "llama_cpp": "llama_cpp"},
        ("", "Echo", "llama", "echo "),
    ),
    Case(("--model-type",), None, {"gpt2": "gpt2", "llama": "llama"}),
    Case(
        ("-n", "--num-ctx-tokens"),
        2048,
        {"8": 8, "4096": 4096, "+16": 16},
        (*NO_INTEGERS, "7", "0", "-8", "2147483648"),
    ),
    Case(
        ("--kv-type",),
        "f16",
        {"f32": "f32", "q8_0": "q8_0", "f16": "f16"},
        ("", "F16", "f64"),
    ),
    Case(("-b", "--batch-size"), None, {"1": 1, "512": 512}, (*NO_INTEGERS, "0", "-1")),
    Case(("--mlock",), "off", {"on": "on", "off": "off"}, ("", "yes", "auto")),
    Case(("--repack",), "auto", {"on": "on", "off": "off", "auto": "auto"}, ("", "yes")),
    Case(("-R", "--restore-prompt"), None, {"a.prompt": Path("a.prompt"), "/b": Path("/b")}),
    Case(("--cache-dir",), None, {"prompts": Path("prompts"), "/b": Path("/b")}),
    Case(
        ("--cache-limit",),
        None,
        {"0": 0, "1000": 1000, "2k": 2048, "500M": 500 * 2**20, "2G": 2**31, "1t": 2**40},
        ("", " ", "x", "-1", "1.5G", "G", "1GB", "1 G", "٣", "9" * 16, "0x10"),
    ),
    Case(("--cache-prompt",), None, {"a.prompt": Path("a.prompt"), "/b": Path("/b")}),
    Case(("--prompt-file",), None, {"a.txt": Path("a.txt"), "/b": Path("/b")}),
    Case(("--chat-template",), None, {"chatml": "chatml", "a.jinja": "a.jinja"}),
    Case(("--prompts",), None, {"prompts.toml": Path("prompts.toml"), "/b": Path("/b")}),
    Case(("--system",), None, {"general": "general", "be brief": "be brief"}),
    Case(("--host",), "127.0.0.1", {"::1": "::1", "localhost": "localhost"}),
    Case(("--api-key-file",), None, {"keys": Path("keys"), "/b": Path("/b")}),
    Case(("--insecure",), "off", {"on": "on", "off": "off"}, ("", "yes")),
    Case(("--allowed-host",), (), {"example.org": ("example.org",), "*": ("*",)}),
    Case(
        ("-P", "--port"),
        8080,
        {"0": 0, "65535": 65535, "80": 80},
        (*NO_INTEGERS, "-1", "65536", "http"),
    ),
    Case(("--queue",), 64, {"0": 0, "1000": 1000}, (*NO_INTEGERS, "-1")),
    Case(("--queue-tokens",), 262_144, {"0": 0, "1000": 1000}, (*NO_INTEGERS, "-1")),
    Case(
        ("--cors-origin",),
        (),
        {"https://example.org": ("https://example.org",), "*": ("*",)},
    ),
    Case(
        ("--trusted-proxy",),
        (),
        {"127.0.0.1": (ip_network("127.0.0.1"),), "2001:db8::/32": (ip_network("2001:db8::/32"),)},
        ("localhost", "*", "10.0.0.1/8"),
    ),
    Case(("--request-timeout",), 30.0, SECONDS, NO_SECONDS),
    Case(("--drain-timeout",), 30.0, SECONDS, NO_SECONDS),
    Case(("--send-timeout",), 20.0, SECONDS, NO_SECONDS),
    Case(
        ("--log-level",),
        "info",
        {"debug": "debug", "warning": "warning", "error": "error", "info": "info"},
        ("", "loud", "INFO", "20"),
    ),
    Case(("--log-format",), "text", {"text": "text", "json": "json"}, ("", "JSON", "xml")),
    Case(("--log-prompts",), "off", {"on": "on", "off": "off"}, ("yes", "1")),
    Case(("-t", "--num-threads"), None, {"1": 1, "64": 64}, (*NO_INTEGERS, "0", "-1")),
    Case(("--workers",), None, {"1": 1, "1024": 1024}, (*NO_INTEGERS, "0", "-1", "1025")),
    Case(("--slots",), None, {"1": 1, "256": 256}, (*NO_INTEGERS, "0", "257")),
    Case(
        ("--max-stall",),
        150.0,
        {"1": 1.0, "99.5": 99.5, "60000": 60_000.0},
        (*NO_NUMBERS, "0", "0.9", "60001"),
    ),
    Case(("--load-timeout",), 600.0, SECONDS, NO_SECONDS),
    Case(("--progress-timeout",), 60.0, SECONDS, NO_SECONDS),
    Case(("--restart-wait",), 30.0, {"0": 0.0, **SECONDS}, (*NO_NUMBERS, "-1", "86401")),
    Case(("--max-deaths",), 5, {"1": 1, "1000": 1000}, (*NO_INTEGERS, "0", "-1")),
    Case(("-T", "--temp"), 0.80, {"0": 0.0, "1.5": 1.5}, (*NO_NUMBERS, "-0.1", "1001")),
    Case(("-k", "--top-k"), 40, {"0": 0, "7": 7}, (*NO_INTEGERS, "-1", "2147483648")),
    Case(("--top-p",), 0.95, {"1": 1.0, "0.5": 0.5}, (*NO_NUMBERS, "0", "1.01", "-1")),
    Case(
        ("-p", "--repeat-penalty"),
        1.30,
        {"1": 1.0, "0.5": 0.5},
        (*NO_NUMBERS, "0", "-1", "1001"),
    ),
    Case(("-r", "--repeat-last-n"), 64, {"0": 0, "256": 256}, (*NO_INTEGERS, "-1")),
)

each_option = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_with_bad_values = pytest.mark.parametrize(
    "case", [case for case in CASES if case.bad], ids=lambda case: case.name
)


def value_of(case: Case, arguments: list[str], environment: dict[str, str]) -> Any:
    return getattr(read_options(arguments, environment), case.name)


def complaint(
    capsys: pytest.CaptureFixture[str], arguments: list[str], environment: dict[str, str]
) -> str:
    """The last line on standard error of a program that ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        read_options(arguments, environment)
    captured = capsys.readouterr()
    assert ended.value.code == STATUS_2
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_every_option_is_tested_here() -> None:
    assert [option.flags for option in OPTIONS] == [case.flags for case in CASES]
    assert [option.variable for option in OPTIONS] == [case.variable for case in CASES]


@each_option
def test_without_a_flag_or_a_variable_an_option_has_its_default(case: Case) -> None:
    value = value_of(case, [], {})

    assert (type(value), value) == (type(case.default), case.default)


@each_option
def test_an_option_can_be_set_by_each_of_its_flags(case: Case) -> None:
    for text, expected in case.good.items():
        for flag in case.flags:
            value = value_of(case, [flag, text], {})
            assert (type(value), value) == (type(expected), expected)
        assert value_of(case, [f"{case.long}={text}"], {}) == expected


@each_option
def test_an_option_can_be_set_in_the_environment(case: Case) -> None:
    for text, expected in case.good.items():
        value = value_of(case, [], {case.variable: text})
        assert (type(value), value) == (type(expected), expected)


@each_option
def test_a_flag_beats_the_environment(case: Case) -> None:
    (first, expected), (second, _), *_ = case.good.items()

    assert value_of(case, [case.long, first], {case.variable: second}) == expected


@each_with_bad_values
def test_a_flag_beats_the_environment_even_where_that_is_wrong(case: Case) -> None:
    text, expected = next(iter(case.good.items()))

    assert value_of(case, [case.long, text], {case.variable: case.bad[-1]}) == expected


@each_option
def test_an_option_leaves_all_others_at_their_defaults(case: Case) -> None:
    text = next(iter(case.good))
    changed = asdict(read_options([case.long, text], {}))
    default = asdict(read_options([], {}))

    assert {name for name in default if changed[name] != default[name]} <= {case.name}


@each_with_bad_values
def test_a_bad_value_of_a_flag_ends_with_status_2_and_names_the_flag(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in case.bad:
        for flag in case.flags:
            joined = f"{flag}={text}" if flag.startswith("--") else f"{flag}{text}"
            arguments = [joined] if text else [flag, text]
            line = complaint(capsys, arguments, {})
            assert line.startswith(f"tokenflume: error: {case.long} must be ")
            assert len(line) < 300


@each_with_bad_values
def test_a_bad_value_in_the_environment_ends_with_status_2_and_names_the_variable(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in case.bad:
        line = complaint(capsys, [], {case.variable: text})
        assert line.startswith(f"tokenflume: error: {case.variable} must be ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "from 0 to 65535"),
        (["--num-ctx-tokens", "7"], "from 8 to"),
        (["--top-p", "1.5"], "> 0 and ≤ 1"),
        (["--temp", "-1"], "≥ 0"),
        (["--slots", "0"], "from 1 to 256"),
        (["--max-stall", "0"], "≥ 1 and ≤ 60000"),
        (["--mlock", "auto"], "one of on, off, not 'auto'"),
        (["--repack", "yes"], "one of on, off, auto, not 'yes'"),
        (["--drain-timeout", "0"], "> 0 and ≤ 86400"),
        (["--engine", "llama"], "one of auto, llama_cpp, ctransformers, echo, not 'llama'"),
        (["--log-level", "loud"], "one of debug, info, warning, error, not 'loud'"),
        (["--kv-type", "f64"], "one of f16, f32, q8_0, not 'f64'"),
    ],
)
def test_the_complaint_says_what_is_possible(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in complaint(capsys, arguments, {})


@each_option
def test_a_flag_without_its_value_ends_with_status_2(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.long in SWITCHES:
        pytest.skip("means on")
    assert case.long in complaint(capsys, [case.long], {})


@pytest.mark.parametrize("flag", ["--port", "--temp"])
def test_two_dashes_for_a_value_end_with_status_2_and_name_the_flag(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older versions of argparse make a list of `--port=--`, which no parser here expects."""
    assert flag in complaint(capsys, [f"{flag}=--"], {})


@pytest.mark.parametrize("arguments", [["--verbose"], ["-x"], ["model.gguf"], ["--threads", "2"]])
def test_an_unknown_flag_ends_with_status_2_and_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert arguments[0] in complaint(capsys, arguments, {})


def test_other_variables_are_none_of_ours() -> None:
    environment = {"PORT": "1", "tokenflume_port": "2", "MODEL": "x", "HOME": "/"}

    assert read_options([], environment) == read_options([], {})


# ---------------------------------------------------------------- switches, --help


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--plan"], "plan"),
        (["--version"], "version"),
        (["-f"], "float16"),
        (["--float16"], "float16"),
    ],
)
def test_a_switch_is_off_until_it_is_given(arguments: list[str], name: str) -> None:
    assert getattr(build_parser().parse_args([]), name) is False
    assert getattr(build_parser().parse_args(arguments), name) is True


@pytest.mark.parametrize("arguments", [["-f"], ["--float16"], ["-f", "--kv-type", "f16"]])
def test_float16_is_the_default_number_format_by_another_name(arguments: list[str]) -> None:
    assert read_options(arguments, {}).kv_type == "f16"


@pytest.mark.parametrize("flag", ["-f", "--float16"])
@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_float16_beside_a_flag_for_another_number_format_ends_with_status_2(
    flag: str, kv_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(capsys, [flag, "--kv-type", kv_type], {})

    assert line.endswith(f"--float16 and --kv-type {kv_type} contradict each other")


def test_float16_beats_another_number_format_in_the_environment() -> None:
    """--help says that it is the same as --kv-type f16, and that a flag wins."""
    assert read_options(["--float16"], {"TOKENFLUME_KV_TYPE": "q8_0"}).kv_type == "f16"


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        read_options(["--help"], {})
    assert ended.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_help_mentions_every_flag_with_its_default(help_text: str) -> None:
    words = " ".join(help_text.split())
    for case in CASES:
        for flag in case.flags:
            assert f" {flag} " in words or f" {flag}," in words
        if case.default not in (None, ()):
            assert f"(default: {case.default})" in words
    for flag in ("-f", "--float16", "--plan", "--version", "-h", "--help", "--config"):
        assert f" {flag} " in words or f" {flag}," in words


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_is_wrapped_to_the_terminal_but_not_wider_than_can_be_read(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        read_options(["--help"], {})

    options, _, epilog = capsys.readouterr().out.partition("exit status:")
    assert max(map(len, options.splitlines()[4:])) <= min(columns, 100)
    assert max(map(len, epilog.splitlines())) <= 80


def test_help_ends_with_examples_that_the_program_takes(help_text: str) -> None:
    *_, examples = help_text.partition("\nexamples:\n")
    commands = [line.split() for line in examples.splitlines() if line.startswith("  tokenflume")]
    assert len(commands) > 4
    for _, *arguments in commands:
        if arguments[:1] != ["tune"] and "--config" not in arguments:
            read_options(arguments, {})


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_in_the_documentation(option: Any) -> None:
    page = (ROOT / "OPERATIONS.md").read_text()
    table = page.partition("## Options")[2].partition("\n## ")[0]
    assert re.search(rf"`{option.flags[-1]}`", table)


def test_help_mentions_what_an_option_can_be(help_text: str) -> None:
    words = " ".join(help_text.split())

    assert "one of auto, llama_cpp, ctransformers, echo" in words
    assert "one of f16, f32, q8_0" in words
    assert "one of debug, info, warning, error" in words


def test_help_says_how_the_environment_is_used_and_what_an_exit_status_means(
    help_text: str,
) -> None:
    assert "TOKENFLUME_NUM_THREADS" in help_text
    assert "A flag wins over the environment" in help_text
    for status in (0, 1, 2, 3, 4, 5):
        assert f"\n  {status}  " in help_text


def test_help_is_printed_even_where_the_environment_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(["-h"], {"TOKENFLUME_PORT": "x"})

    assert ended.value.code == 0
    assert "--port" in capsys.readouterr().out


def test_the_result_has_every_option_and_cannot_be_changed() -> None:
    options = read_options([], {})

    assert [field.name for field in fields(options)] == [case.name for case in CASES]
    with pytest.raises(FrozenInstanceError):
        options.port = 1  # type: ignore[misc]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type that the hint says."""
    origin = get_origin(hint)
    if origin is UnionType:
        return any(fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        element, _ = get_args(hint)
        return isinstance(value, tuple) and all(fits(one, element) for one in value)
    return type(value) is hint or (hint is Path and isinstance(value, Path))


@each_option
def test_every_value_has_the_type_of_its_field(case: Case) -> None:
    hint = get_type_hints(Options)[case.name]

    assert fits(case.default, hint)
    for text in case.good:
        assert fits(value_of(case, [case.long, text], {}), hint)


@each_option
def test_the_choices_of_an_option_are_those_of_its_type(case: Case) -> None:
    hint = get_type_hints(Options)[case.name]
    (option,) = [option for option in OPTIONS if option.name == case.name]

    assert option.parser.choices == (get_args(hint) if get_origin(hint) is Literal else ())
    assert (case.default is None) == (NoneType in get_args(hint))


def test_a_mistyped_variable_ends_with_status_2_and_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = complaint(capsys, [], {"TOKENFLUME_NUM_THREAD": "2"})
    assert "TOKENFLUME_NUM_THREAD is not an option; did you mean TOKENFLUME_NUM_THREADS?" in said


def name_of(flag: str) -> str:
    return flag[2:].replace("-", "_")


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_switch_without_a_value_is_on(flag: str) -> None:
    assert getattr(read_options([flag], {}), name_of(flag)) == "on"
    assert getattr(read_options([flag, "--port", "0"], {}), name_of(flag)) == "on"


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_switch_without_a_value_beats_the_environment(flag: str) -> None:
    variable = "TOKENFLUME_" + name_of(flag).upper()

    assert getattr(read_options([], {variable: "off"}), name_of(flag)) == "off"
    assert getattr(read_options([flag], {variable: "off"}), name_of(flag)) == "on"


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_switch_in_the_environment_needs_a_value(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = "TOKENFLUME_" + name_of(flag).upper()

    assert "must be one of on, off" in complaint(capsys, [], {variable: ""})
    assert getattr(read_options([], {variable: "on"}), name_of(flag)) == "on"
