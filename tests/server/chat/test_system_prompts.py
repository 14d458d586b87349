"""Named system prompts."""

import pytest

from server.chat.system_prompts import SystemPrompts, system_prompts
from shared.errors import ConfigurationError

FILE = '''
general = "You are kind."
sql = """
One query,
nothing else.
"""
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text(FILE)
    return path


def test_a_name_is_its_text_and_a_text_is_itself(file):
    prompts = system_prompts(file, "general")
    assert prompts.default == "You are kind."
    assert prompts.resolve(None) == "You are kind."
    assert prompts.resolve("sql") == "One query,\nnothing else."
    assert prompts.resolve("Be brief.") == "Be brief."
    assert system_prompts(file, "Be brief.").resolve(None) == "Be brief."


def test_an_empty_text_is_no_system_prompt(file):
    assert system_prompts(file, "general").resolve("") is None
    assert system_prompts(file, "").resolve(None) is None
    assert SystemPrompts().resolve(None) is None


def test_without_a_file_every_word_is_a_text():
    assert system_prompts(None, "kind").resolve(None) == "kind"


def test_a_word_that_is_no_name_of_the_file_is_refused_with_the_names(file):
    with pytest.raises(ConfigurationError, match="'sqll'; it has general, sql"):
        system_prompts(file, "sqll")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a = 1", "a must be a string"),
        ('a = ""', "a must be a string that is not empty"),
        ('[prompts]\na = "b"', "prompts must be a string"),
        ('a = "\\u0000"', "a must not contain"),
        ('"a b" = "c"', "the name 'a b'"),
        ("a =", "is not valid TOML"),
        ('a = "\xff"', "is not valid TOML"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_the_name(tmp_path, content, sentence):
    path = tmp_path / "prompts.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=sentence):
        system_prompts(path, None)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        system_prompts(tmp_path / "none.toml", None)
