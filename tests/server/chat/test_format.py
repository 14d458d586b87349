"""From messages to a prompt."""

import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.chat.format import GUESS, MODEL_OWN, built_in_names, chat_format
from shared.errors import ConfigurationError, InvalidRequest
from shared.values import ModelCard

FOLDER = Path(__file__).parent / "templates"
CONTROL = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
    "<x|",
    "|x><",
)
USER = {"role": "user", "content": "Hi"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"name": "weather", "arguments": '{"city": "Bonn"}'}
CALLED = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "abc123456", "function": CALL}]},
    {"role": "tool", "tool_call_id": "abc123456", "content": "18"},
]


def template(name):
    return (FOLDER / f"{name}.jinja").read_text()


def of(source, control=CONTROL):
    return chat_format(
        ModelCard(chat_template=source, bos="<s>", eos="</s>", control=control), None
    )


def built_in(name, control=CONTROL):
    return chat_format(ModelCard(bos="<s>", eos="</s>", control=control), name)


CHATML = of(template("chatml"))


# Which template


def test_the_models_own_template_is_taken():
    form = of(template("qwen25"))
    assert (form.name, form.is_guess, form.takes_tools) == (MODEL_OWN, False, True)
    assert form.tool_format.name == "hermes"


def test_a_model_without_a_template_gets_a_guess_that_is_known_as_one():
    form = of("")
    assert (form.name, form.is_guess) == (GUESS, True)
    assert form.render([USER]).text == "<s>User: Hi\nAssistant:"
    assert form.stop == ("\nUser:",)


@pytest.mark.parametrize("source", ["{% for %}", "{{ 1 / 0 }}", "nothing", "{{ messages.x.y }}"])
def test_a_models_broken_template_is_warned_of_and_replaced(source, caplog):
    with caplog.at_level(logging.WARNING):
        assert of(source).is_guess
    assert "does not work" in caplog.text or "leaves out" in caplog.text


def test_a_chosen_template_wins_by_name_or_file(tmp_path):
    card = ModelCard(chat_template=template("qwen25"), bos="<s>", eos="</s>")
    assert chat_format(card, "alpaca").name == "alpaca"
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}!")
    assert chat_format(card, str(file)).render([USER]).text == "Hi!"


def test_a_template_that_does_not_exist_or_work_is_an_error(tmp_path):
    file = tmp_path / "own.jinja"
    for content, sentence in (
        (b"{% for %}", "own.jinja.*does not work"),
        (b"nothing", "leaves out"),
        (b"\xff", "not UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=sentence):
            chat_format(ModelCard(), str(file))
    with pytest.raises(
        ConfigurationError, match="'chatmll' is neither a file nor one of alpaca, chatml"
    ):
        chat_format(ModelCard(), "chatmll")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        chat_format(ModelCard(), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "with_control", "without"),
    [
        ("alpaca", ("### Instruction:",), ("### Instruction:",)),
        ("chatml", (), ("<|im_end|>",)),
        ("gemma", (), ("<end_of_turn>",)),
        ("llama3", (), ("<|eot_id|>",)),
        ("llama2", (), ("[INST]",)),
        ("mistral", (), ("[INST]",)),
        ("phi2", ("\nInstruct:",), ("\nInstruct:",)),
        ("phi3", (), ("<|end|>",)),
        ("plain", ("\nUser:",), ("\nUser:",)),
        ("puffin", ("### human:",), ("### human:",)),
        ("zephyr", (), ("</s>",)),
    ],
)
def test_a_text_ends_the_turn_where_no_control_token_does(name, with_control, without):
    names = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>")
    card = ModelCard(bos="<s>", eos="</s>", control=names)
    assert chat_format(card, name).stop == with_control
    assert chat_format(ModelCard(), name).stop == without


@pytest.mark.parametrize("name", built_in_names())
def test_every_built_in_template_shows_everything_in_its_order(name):
    text = (
        built_in(name)
        .render(
            [
                {"role": "system", "content": "Sys"},
                {"role": "user", "content": "One"},
                {"role": "assistant", "content": "Two"},
                {"role": "user", "content": "Three"},
            ]
        )
        .text
    )
    assert re.search("Sys.*One.*Two.*Three", text, re.DOTALL)
    assert text.count("Sys") == 1


# Messages


def test_contents_may_be_parts_and_developers_are_the_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    text = CHATML.render([{"role": "developer", "content": parts}, USER]).text
    assert text.startswith("<|im_start|>system\na\nb<|im_end|>\n<|im_start|>user\nHi")


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_system_prompt_that_is_refused_goes_into_the_first_users_message(name):
    text = built_in(name).render([{"role": "system", "content": "Be kind."}, USER]).text
    assert "Be kind.\n\nHi" in text


def test_a_system_prompt_that_is_dropped_goes_into_the_first_users_message():
    form = of("{% for m in messages if m.role != 'system' %}{{ m.role ~ m.content }}{% endfor %}")
    assert form.render([{"role": "system", "content": "x"}, USER]).text == "userx\n\nHi"
    assert form.render([{"role": "system", "content": "x"}]).text == "userx"


def test_a_late_system_prompt_goes_into_the_next_users_message_where_it_must():
    late = [USER, {"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}, USER]
    assert "[INST] s\n\nHi[/INST]" in of(template("mistral")).render(late).text
    assert "<|im_start|>system\ns<|im_end|>" in of(template("qwen25")).render(late).text


def test_a_content_of_null_never_becomes_a_word():
    for path in FOLDER.glob("*.jinja"):
        text = of(path.read_text()).render(CALLED, tools=[TOOL]).text
        assert "None" not in text, path.stem
        assert "Bonn" in text, path.stem
        assert "18" in text, path.stem
    assert "None" not in CHATML.render([USER, {"role": "assistant", "content": None}, USER]).text


def test_arguments_are_objects_or_texts_as_the_template_wants_them():
    assert '"arguments": {"city": "Bonn"}' in of(template("qwen25")).render(CALLED).text
    assert '\n{"city": "Bonn"}\n' in of(template("deepseek")).render(CALLED).text


def test_ids_and_names_that_a_client_leaves_out_are_found():
    chat = [
        USER,
        {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}] * 2},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    text = of(template("mistral")).render(chat).text
    ids = re.findall(r'"(?:call_)?id": "(\w+)"', text)
    assert ids == ["call00000", "call00001"] * 2
    assert of(template("command_r")).render(chat).text.count('{"tool_name": "a", "result"') == 2


def test_functions_are_described_in_the_system_prompt_where_a_template_has_no_place_for_them():
    form = built_in("gemma")
    assert not form.takes_tools
    assert form.tool_format.name == "hermes"
    text = form.render(CALLED, tools=[TOOL]).text
    assert json.dumps(TOOL["function"]) in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>' in text
    assert "<tool_response>\n18\n</tool_response>" in text


def test_an_answer_is_continued_where_it_ended():
    for path in FOLDER.glob("*.jinja"):
        form = of(path.read_text())
        for content in ("e", "The answer", "a  \n", "<think>\nx\n</think>\n\nThe"):
            if path.stem == "deepseek" and "think" in content:
                continue  # it leaves out what was thought
            chat = [USER, {"role": "assistant", "content": content}]
            prompt = form.render(chat, continues=True)
            assert prompt.text.endswith(content.lstrip()), path.stem


def test_only_an_assistants_text_is_continued():
    for chat in ([USER], CALLED[:2], [USER, {"role": "assistant", "content": None}]):
        with pytest.raises(InvalidRequest, match="can be continued"):
            CHATML.render(chat, continues=True)


def test_variables_reach_the_template_but_never_in_our_names_place():
    form = of(template("qwen3"))
    assert form.render([USER], variables={"enable_thinking": False}).text.endswith("</think>\n\n")
    with pytest.raises(InvalidRequest, match="bos_token"):
        form.render([USER], variables={"bos_token": "x"})


def test_a_templates_refusal_is_told_in_its_words():
    with pytest.raises(InvalidRequest, match="refuses: user and assistant must take turns"):
        of(template("mistral")).render([USER, USER])


def test_what_was_thought_has_both_of_its_names():
    for key in ("reasoning_content", "thinking", "reasoning"):
        for name in ("reasoning_content", "thinking"):
            form = of(f"{{{{ messages[-1].{name} }}}}{{{{ messages[0].content }}}}")
            assert form.render([USER, {"role": "assistant", "content": "b", key: "deep"}]).text == (
                "deepHi"
            )


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (None, "messages must be a list"),
        ([], "messages must be a list"),
        (["a"], r"messages\[0\] must be an object"),
        ([{"content": "a"}], r"messages\[0\]\.role must be one of system, developer"),
        ([{"role": "king", "content": "a"}], r"messages\[0\]\.role"),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\]\.role"),
        ([{"role": "user"}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": 1}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\]\.type"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text"),
        ([{"role": "user", "content": "a\0"}], r"messages\[0\].*U\+0000"),
        ([{"role": "user", "content": "a\ud800"}], r"messages\[0\].*surrogate"),
        ([{"role": "user", "content": "a", "x": {"y\0": 1}}], r"messages\[0\].*U\+0000"),
        ([{"role": "user", "content": "a", "name": 1}], r"messages\[0\]\.name"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], r"messages\[0\]\.tool_calls"),
        ([{"role": "assistant", "tool_calls": 1}], r"messages\[0\]\.tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [1]}], r"tool_calls\[0\] must be an object"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"tool_calls\[0\]\.function must"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], r"function\.name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}],
            r"function\.arguments must be an object",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": [], "function": {"name": "a"}}]}],
            r"tool_calls\[0\]\.id",
        ),
    ],
)
def test_messages_of_another_shape_are_refused_with_the_field(messages, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        CHATML.render(messages)


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        ({}, "tools must be a list"),
        ([1], r"tools\[0\] must be an object"),
        ([{"type": "retrieval"}], r"tools\[0\]\.type"),
        ([{"type": "function"}], r"tools\[0\]\.function"),
        ([{"function": {"name": ""}}], r"tools\[0\]\.function\.name"),
        ([{"function": {"name": "a", "parameters": 1}}], r"tools\[0\]\.function\.parameters"),
    ],
)
def test_functions_of_another_shape_are_refused_with_the_field(tools, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        CHATML.render([USER], tools=tools)


def test_what_is_nested_without_end_is_refused():
    value = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(InvalidRequest, match="nested deeper"):
        CHATML.render([{**USER, "x": value}])
    with pytest.raises(InvalidRequest, match="nested deeper"):
        CHATML.render([USER], variables={"x": value})


# Control tokens


def found(parts):
    """The control tokens' names in a text's parts, overlapping ones too."""
    pattern = re.compile(f"(?=({'|'.join(map(re.escape, CONTROL))}))")
    return sorted(match[1] for part in parts for match in pattern.finditer(part))


def test_a_clients_control_tokens_are_cut():
    prompt = CHATML.render([{"role": "user", "content": "a<|im_end|>b"}])
    cut = prompt.text.index("a<|im_end|>b") + 2
    assert prompt.cuts == (cut,)
    assert found(prompt.parts) == found(CHATML.render([USER]).parts)


def test_signs_that_could_be_marks_stay_texts():
    content = "".join(map(chr, range(0x12000, 0x12080))) + "<|im_end|>"
    prompt = CHATML.render([{"role": "user", "content": content}])
    assert content in prompt.text
    assert len(prompt.cuts) == 1


def test_names_that_a_template_makes_by_rewriting_are_cut():
    source = "{{ messages[0].content.replace('/think', '') }}<|im_end|>{{ messages[0].content }}"
    prompt = of(source).render([{"role": "user", "content": "<|im/think_end|>"}])
    assert prompt.text == "<|im_end|><|im_end|><|im/think_end|>"
    assert found(prompt.parts) == ["<|im_end|>"]


def test_names_that_come_about_where_texts_meet_are_cut():
    source = (
        "{% set m = messages[0] %}{{ m.content ~ m.name }}<{{ m.name }}>{{ m.content }}{{ m.list }}"
    )
    form = of(source)
    for content, name in (
        ("<|im_", "end|>"),
        ("x", "|im_end|"),
        ("<|im_end|", ">"),
        ("<|", "end|>"),
    ):
        prompt = form.render(
            [{"role": "user", "content": content, "name": name, "list": [content]}]
        )
        assert found(prompt.parts) == [], (content, name)


def test_words_that_a_template_compares_with_stay_equal():
    source = "{% if effort == 'x|' %}right{% endif %}{{ messages[0].content }}"
    form = of(source, ("<x|", "<|x|>"))
    assert form.render([USER], variables={"effort": "x|"}).text == "rightHi"


PIECES = st.sampled_from(
    [*CONTROL, *(name[:cut] for name in CONTROL for cut in (1, 2, len(name) - 1)),
     *(name[cut:] for name in CONTROL for cut in (1, 2, len(name) - 1)),
     "a", " ", "\n", '"', "\\", "\\u0041", "é", "𒀀", "𒀁", "'", "</think>", "{", "}"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=6).map("".join)
WORDS = TEXTS.map(lambda text: f"f{text}")


def chat(system, question, answer, name, key, value, result, *, description):
    """A chat with texts of a client in all places, and its functions."""
    call = {"id": "call00000", "function": {"name": name, "arguments": {key: value, "k": [value]}}}
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00000", "content": result},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]
    schema = {"type": "object", "properties": {key: {"type": "string", "description": value}}}
    tool = {"name": name, "description": description, "parameters": {**schema, "required": [key]}}
    return messages, [{"type": "function", "function": tool}]


FORMS = {path.stem: of(path.read_text()) for path in FOLDER.glob("*.jinja")}
FORMS |= {f"our {name}": built_in(name) for name in ("chatml", "gemma", "llama2", "plain")}
UNMARKED = {path.stem: of(path.read_text(), ()) for path in FOLDER.glob("*.jinja")}
UNMARKED |= {f"our {name}": built_in(name, ()) for name in ("chatml", "gemma", "llama2", "plain")}


@pytest.mark.parametrize("name", FORMS)
@given(texts=st.tuples(TEXTS, WORDS, WORDS, WORDS, WORDS, TEXTS, WORDS), more=WORDS)
def test_clients_write_no_control_tokens_and_all_texts_stay_what_they_are(name, texts, more):
    assume("k" not in texts)
    messages, tools = chat(*texts, description=more)
    prompt = FORMS[name].render(messages, tools=tools)
    unmarked = UNMARKED[name].render(messages, tools=tools)
    assert "".join(prompt.parts) == prompt.text == unmarked.text
    assert all(prompt.parts)
    plain = ["f" if text else "" for text in texts]
    messages, tools = chat(*plain, description="f")
    assert found(prompt.parts) == found(FORMS[name].render(messages, tools=tools).parts)
