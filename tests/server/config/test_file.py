"""Options in a file: every option, what beats it, what is refused and how."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config.file import read_toml, toml_value
from server.config.options import OPTIONS, Option
from server.config.output import print_config
from server.config.parsers import NETWORK
from tests.helpers.options import read_options, resolved

EXAMPLES: dict[str, tuple[str, Any]] = {
    "text": ('"a.file"', "a.file"),
    "number": ("1", 1),
    "bytes": ('"2G"', 2**31),
}


def example(option: Option) -> tuple[str, Any]:
    """A value in TOML, and as the option has it."""
    if choices := option.parser.choices:
        return f'"{choices[-1]}"', choices[-1]
    if option.name == "num_ctx_tokens":
        return "8", 8
    takes = option.parser.takes
    written, value = EXAMPLES[takes]
    if option.parser is NETWORK:
        return '["10.0.0.0/8", "::1"]', (ip_network("10.0.0.0/8"), ip_network("::1"))
    if option.repeats:
        return f"[{written}, {written}]", (value, value)
    return written, option.parser(option.flag, value) if takes == "text" else value


def written(folder: Path, text: str) -> str:
    path = folder / "options.toml"
    path.write_text(text)
    return str(path)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, **environment: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read_options(list(arguments), environment)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("tokenflume: error: ")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@pytest.mark.parametrize("dash", ["-", "_"])
def test_every_option_can_be_set_in_a_file(option: Option, dash: str, tmp_path: Path) -> None:
    text, value = example(option)
    path = written(tmp_path, f"{option.name.replace('_', dash)} = {text}")

    changed = asdict(read_options(["--config", path], {}))

    assert changed[option.name] == value
    default = asdict(read_options([], {}))
    assert {name for name in default if changed[name] != default[name]} <= {option.name}


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "port = 1\ntop-k = 1\nqueue = 1")

    options = read_options(
        ["--config", path, "--port", "3"],
        {"TOKENFLUME_PORT": "2", "TOKENFLUME_TOP_K": "2"},
    )

    assert (options.port, options.top_k, options.queue, options.slots) == (3, 2, 1, None)


def test_the_environment_may_name_the_file_and_a_flag_another(tmp_path: Path) -> None:
    first = written(tmp_path, "port = 1")
    second = tmp_path / "second.toml"
    second.write_text("port = 2")

    assert read_options([], {"TOKENFLUME_CONFIG": first}).port == 1
    assert read_options(["--config", str(second)], {"TOKENFLUME_CONFIG": first}).port == 2
    assert read_options([], {"TOKENFLUME_CONFIG": ""}).port == 8080


def test_a_table_of_models_is_as_several_flags(tmp_path: Path) -> None:
    path = written(tmp_path, 'port = 1\n[models]\nchat = "/a.gguf"\n"code:7b" = "b.gguf"')

    assert read_options(["--config", path], {}).model == ("chat=/a.gguf", "code:7b=b.gguf")


def test_a_single_string_will_do_where_a_list_may_be(tmp_path: Path) -> None:
    path = written(tmp_path, 'model = "a.gguf"\ncors-origin = []')

    options = read_options(["--config", path], {})

    assert (options.model, options.cors_origin) == (("a.gguf",), ())


@pytest.mark.parametrize(
    ("switch", "value"), [("true", "on"), ("false", "off"), ('"on"', "on"), ('"auto"', "auto")]
)
def test_a_switch_is_a_truth_value_or_its_word(switch: str, value: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"repack = {switch}")

    assert read_options(["--config", path], {}).repack == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num-thread = 1", "num-thread is not an option; did you mean num-threads?"),
        ("config = 1", "config is not an option; did you mean"),
        ("float16 = true", "float16 is not an option; did you mean"),
        ('port = "4"', "port must be an integer from 0 to 65535"),
        ("port = 4.0", "port must be an integer from 0 to 65535"),
        ("port = true", "port must be an integer from 0 to 65535"),
        ("port = [4]", "port must be an integer from 0 to 65535"),
        ("port = 65536", "port must be an integer from 0 to 65535"),
        ("port = 1979-05-27", "port must be an integer from 0 to 65535"),
        ("top-p = nan", "top-p must be a number > 0 and ≤ 1"),
        ('top-p = "0.5"', "top-p must be a number > 0 and ≤ 1"),
        ("max_stall = 0", "max-stall must be a number ≥ 1 and ≤ 60000"),
        ('cache-limit = "2GB"', "such as 1000000, 500M or 2G"),
        ("host = 4", "host must be a string"),
        ("prompts = true", "prompts must be a string"),
        ('prompts = "a\\u0000"', "prompts must not contain the character U+0000"),
        ('[models]\na = "b\\u0000"', "models: a must be a string, the name of a file"),
        ("model = [1]", "model must be a string, or a list of strings"),
        ("mlock = 1", 'mlock must be true, false, or one of "on", "off"'),
        ("kv-type = true", 'kv-type must be one of "f16", "f32", "q8_0"'),
        ('kv-type = "f64"', "kv-type must be one of f16, f32, q8_0, not 'f64'"),
        ("[server]\nport = 1", "server is not a known table: only [models] is"),
        ("models = 1", "models must be a table of NAME = FILE"),
        ("[models]\na = 1", "models: a must be a string, the name of a file"),
        ('[models]\n"a b" = "c"', "a name must consist of letters"),
        ('model = "a"\n[models]\nb = "c"', "models sets an option that another key has set"),
        ("top-k = 1\ntop_k = 1", "top_k sets an option that another key has set"),
        ("port = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_ends_with_status_2_and_names_the_file_and_the_key(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, text)

    line = complaint(capsys, "--config", path)

    assert line.startswith(path)
    assert said in line


def test_a_file_that_is_missing_or_no_text_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be read: No such file" in complaint(capsys, "--config", str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\0")
    assert "is not valid TOML" in complaint(capsys, TOKENFLUME_CONFIG=str(tmp_path / "binary"))


def test_a_mistyped_variable_of_the_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean TOKENFLUME_CONFIG?" in complaint(capsys, TOKENFLUME_CONFG="x")


def test_a_list_in_the_environment_with_an_open_quote_ends_with_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ended with a traceback."""
    assert "TOKENFLUME_MODEL must be quoted as in a shell: No closing quotation" in complaint(
        capsys, TOKENFLUME_MODEL='"a'
    )


# ---------------------------------------------------------------- --print-config


def printed(*arguments: str, **environment: str) -> str:
    return print_config(resolved(arguments, environment))


def test_what_is_printed_says_where_each_value_is_from(tmp_path: Path) -> None:
    path = written(tmp_path, "queue = 7")

    lines = printed("--config", path, "-P", "3", TOKENFLUME_TOP_K="2").splitlines()

    by_key = {line.split(" = ")[0]: line for line in lines if " = " in line}
    assert by_key["queue"].split() == ["queue", "=", "7", "#", path]
    assert by_key["port"].split() == ["port", "=", "3", "#", "--port"]
    assert by_key["top-k"].split() == ["top-k", "=", "2", "#", "TOKENFLUME_TOP_K"]
    assert by_key["host"].split() == ["host", "=", '"127.0.0.1"', "#", "default"]
    assert [line for line in lines if line.startswith("# slots =")]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_what_is_printed_is_a_file_of_the_same_options(option: Option, tmp_path: Path) -> None:
    path = written(tmp_path, f"{option.name} = {example(option)[0]}")
    again = tmp_path / "again.toml"
    again.write_text(printed("--config", path))

    first, second = (read_options(["--config", str(file)], {}) for file in (path, again))

    assert first == second


@given(
    value=st.text(st.characters(exclude_categories=["Cs"]))
    | st.floats(allow_nan=False)
    | st.booleans()
)
def test_a_value_in_toml_reads_as_itself(value: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("toml") / "value.toml"
    path.write_text(f"a = {toml_value(value)}\nb = {toml_value([str(value)])}", "utf-8")

    assert read_toml(path) == {"a": value, "b": [str(value)]}


VALUES = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda values: st.lists(values, max_size=3),
    max_leaves=4,
)


def in_toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(in_toml, value))}]"
    return toml_value(value)


@given(option=st.sampled_from(OPTIONS), value=VALUES)
def test_any_value_is_taken_or_ends_with_status_2(
    option: Option, value: Any, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("toml") / "any.toml"
    path.write_text(f"{option.name} = {in_toml(value)}", "utf-8")

    try:
        options = read_options(["--config", str(path)], {})
    except SystemExit as ended:
        assert ended.code == 2
    else:
        found = getattr(options, option.name)
        assert isinstance(found, str | int | float | Path | tuple)
