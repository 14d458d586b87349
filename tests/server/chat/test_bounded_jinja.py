"""Templates of strangers: rendered as transformers does it, within bounds."""

import contextlib
import time

import pytest

from server.chat.bounded_jinja import (
    MARKS,
    MAX_TEMPLATE,
    ChatTemplate,
    TemplateFailed,
    TemplateRefused,
)


def render(source, **variables):
    return ChatTemplate(source).render(variables)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
        "{% for a in range(99999) %}{% set x = range(99999) | list | sort %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source):
    template = ChatTemplate(source, seconds=0.2)
    start = time.monotonic()
    with pytest.raises(TemplateFailed, match=r"takes longer than 0\.2 s|makes more than"):
        template.render({})
    assert time.monotonic() - start < 5


DOUBLED = "{% set n = namespace(x=X) %}{% for i in range(60) %}{% set n.x = Y %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 10) }}",
        DOUBLED.replace("X", "'ab'").replace("Y", "n.x + n.x"),
        DOUBLED.replace("X", "'ab'").replace("Y", "n.x ~ n.x"),
        DOUBLED.replace("X", "'ab'").replace("Y", "n.x.replace('a', n.x)"),
        DOUBLED.replace("X", "'ab'").replace("Y", "n.x | replace('a', n.x)"),
        DOUBLED.replace("X", "'ab'").replace("Y", "n.x.join([n.x, n.x, n.x])"),
        DOUBLED.replace("X", "'ab'").replace("Y", "[n.x, n.x] | join"),
        DOUBLED.replace("X", "'ab'").replace("Y", "'{0}{0}'.format(n.x)"),
        DOUBLED.replace("X", "'ab'").replace("Y", "'%s%s' % (n.x, n.x)"),
        DOUBLED.replace("X", "'ab'").replace("Y", "'%s%s' | format(n.x, n.x)"),
        DOUBLED.replace("X", "['ab']").replace("Y", "[n.x, n.x]") + "{{ n.x }}",
        DOUBLED.replace("X", "['ab']").replace("Y", "[n.x, n.x]") + "{{ n.x | tojson }}",
        DOUBLED.replace("X", "['ab']").replace("Y", "[n.x, n.x]") + "{{ n.x | string }}",
        DOUBLED.replace("X", "['ab']").replace("Y", "n.x + n.x"),
        DOUBLED.replace("X", "9").replace("Y", "n.x * n.x"),
        "{% set a = 'a' * 9999999 %}{% for i in range(99) %}{{ a }}{% endfor %}",
        "{% set a = 'a' * 9999999 %}{% set b %}{% for i in range(99) %}{{ a }}{% endfor %}"
        "{% endset %}",
        "{% set a = '\n' * 99999 %}{{ a | indent(9999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%(a)9.999999999f' % {'a': 1.5} }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 5 .to_bytes(999999999) }}",
        "{{ [[[1]]] | tojson(indent=999999999) }}",
        "{{ 1.5 | round(999999999, 'ceil') }}",
        "{{ [1] | slice(999999999) | list }}",
        "{{ range(10 ** 9) }}",
        "{{ ([range(99999) | list] * 99999) | sum(start=[]) | length }}",
        "{% set n = namespace(x=[]) %}{% for i in range(99999) %}"
        "{% set n.x = [range(99999) | list, n.x] %}{% endfor %}",
        "{{ lipsum(10 ** 9) }}",
    ],
)
def test_nothing_enormous_is_made(source):
    start = time.monotonic()
    with pytest.raises(TemplateFailed):
        render(source)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.x }}",
        "{% include 'file' %}",
        "{% import '/etc/passwd' as x %}",
    ],
)
def test_a_template_cannot_reach_our_objects(source):
    with contextlib.suppress(TemplateFailed):
        assert render(source, messages=[]) == ""


def test_a_text_that_is_no_template_is_refused_when_it_is_compiled():
    for source in ("{% for %}", "{{ 1 | nothing }}", "{% if " * 5000, "a" * (MAX_TEMPLATE + 1)):
        with pytest.raises(TemplateFailed):
            ChatTemplate(source)


def test_a_template_refuses_with_its_own_sentence():
    with pytest.raises(TemplateRefused, match=r"^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


def test_json_is_as_it_is():
    value = {"b": "<é>&'\"", "a": [1, None]}
    assert render("{{ v | tojson }}", v=value) == '{"b": "<é>&\'\\"", "a": [1, null]}'
    assert render("{{ v | tojson(sort_keys=True) }}", v=value).startswith('{"a"')
    assert render("{{ v | tojson(separators=(',', ':')) }}", v={"a": [1, 2]}) == '{"a":[1,2]}'
    assert (
        render("{{ v | tojson(ensure_ascii=True) }}", v="é🎉\x7f")
        == '"\\u00e9\\ud83c\\udf89\\u007f"'
    )
    assert render("{{ v | tojson(indent=2) }}", v=[1]) == "[\n  1\n]"


def test_marks_stay_marks_whatever_a_template_does_with_a_text():
    for mark in (MARKS[0], MARKS[-1]):
        text = f"a{mark}b"
        assert mark in render("{{ v | tojson(ensure_ascii=True) }}", v=text)
        assert mark in render("{{ [v] }}{{ {'a': v} | string }}", v=text)
        for change in ("upper", "lower", "title", "capitalize", "trim"):
            assert mark in render(f"{{{{ v | {change} }}}}", v=text)


def test_blocks_leave_no_lines_and_loops_can_be_left():
    source = """
{%- for m in messages %}
    {%- if m == 'b' %}{% continue %}{% endif %}
    {%- if m == 'd' %}{% break %}{% endif %}
{{ loop.index }}{{ m }}{{ loop.last }}/{{ loop.length }}
{% endfor %}
"""
    assert render(source, messages=list("abcde")) == "1aFalse/5\n3cFalse/5\n"


def test_the_generation_tag_is_its_body():
    assert render("{% generation %}{{ 1 + 1 }}{% endgeneration %}") == "2"


def test_it_knows_its_variables_and_words():
    template = ChatTemplate("{% if tools and x.role == 'user' %}{{ x['name'] }}{% endif %}")
    assert template.variables == {"tools", "x"}
    assert template.words == {"role", "user", "name"}


def test_what_is_rewritten_is_shown():
    shown = []

    def rewritten(before, after):
        shown.append((before, after))
        return after + "!"

    template = ChatTemplate("{{ v.replace('b', '') }}{{ v | upper }}{{ v | trim }}")
    assert template.render({"v": "abc"}, rewritten) == "ac!ABC!abc"
    assert shown == [(["abc", "b", ""], "ac"), (["abc"], "ABC")]


def test_numbers_in_a_formatted_text_are_no_widths():
    assert render("{{ '%s in 2024-12345' % 1 }}{{ ' {} 54321'.format(123456) }}") == (
        "1 in 2024-12345 123456 54321"
    )
