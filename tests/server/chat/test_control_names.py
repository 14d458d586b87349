"""Control tokens' names in texts."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from server.chat.control_names import ControlNames, changed, cut_at

MARK = "𒀀"
LETTERS = "<|ab>[]"
NAMES = st.lists(st.text(LETTERS, min_size=2, max_size=7), max_size=8)


def count(names, parts):
    pattern = re.compile(f"(?=(?:{'|'.join(map(re.escape, names)) or '(?!)'}))")
    return sum(len(pattern.findall(part)) for part in parts)


def parts(text):
    plain, cuts = cut_at(text, MARK)
    assert list(cuts) == sorted(set(cuts))
    places = (0, *cuts, len(plain))
    return [plain[start:end] for start, end in itertools.pairwise(places)]


@given(NAMES, st.text(LETTERS, max_size=40))
def test_no_part_of_a_marked_text_has_a_name(names, text):
    marked = ControlNames.of(names).marked(text, MARK)
    assert marked.replace(MARK, "") == text
    assert count(names, parts(marked)) == 0


@given(st.lists(st.text(LETTERS, min_size=3, max_size=7), max_size=8), st.data())
def test_no_name_comes_about_where_two_texts_meet(names, data):
    control = ControlNames.of(names)
    left, right = (data.draw(st.text(LETTERS, max_size=8)) for _ in range(2))
    met = control.marked(left, MARK) + control.marked(right, MARK)
    assert count(names, parts(met)) == 0


@given(st.text(LETTERS, min_size=2, max_size=12))
def test_a_name_between_brackets_of_the_template_is_cut(core):
    control = ControlNames.of([f"<{core}>", f"<|{core}|>"])
    marked = control.marked(core, MARK)
    for around in (f"<{marked}>", f"<|{marked}|>"):
        assert count([f"<{core}>", f"<|{core}|>"], parts(around)) == 0


def test_a_text_that_is_no_name_and_no_part_of_one_has_no_marks():
    control = ControlNames.of(["<|im_start|>", "<|im_end|>", "[INST]", "<s>"])
    for text in ("", "a", "Hello <b>you</b> [1] a|b", "start", "<", "x <", "> quoted"):
        assert control.marked(text, MARK) == text


def test_words_that_templates_compare_with_are_marked_only_where_they_are_names():
    control = ControlNames.of(["<think>", "</think>"])
    assert control.marked("think", MARK) == f"t{MARK}hink"
    assert control.marked("think", MARK, {"think"}) == "think"
    assert control.marked("<think>", MARK, {"<think>"}) == f"<{MARK}think>"


def test_cuts_are_within_the_text_and_each_is_there_once():
    assert cut_at(f"{MARK}a{MARK}{MARK}b{MARK}", MARK) == ("ab", (1,))
    assert cut_at("", MARK) == ("", ())


def test_a_value_is_changed_in_all_its_texts():
    value = {"a": ["b", 1, None, True, {"c": ("d",)}]}
    assert changed(value, str.upper) == {"A": ["B", 1, None, True, {"C": ["D"]}]}


def test_a_thousand_names_in_a_long_text_are_found_at_once():
    control = ControlNames.of([f"<|reserved_{i}|>" for i in range(1000)])
    text = "<html> <|reserved_" * 20_000 + "<|reserved_77|>"
    assert control.marked(text, MARK).count(MARK) == 1
