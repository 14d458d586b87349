"""The page at / in a real browser: the page and POST /stream are the server's, the answers of
POST /v1/chat/completions are scripted to the byte."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import offer_models, opened
from tests.helpers.running import RunningServer
from tests.helpers.scripted import CUT, Script, chat, delta, ending, event, scripted
from tests.helpers.support import echo_options

CHAT = "/v1/chat/completions"
CODE = "Look:\n\n```py\nprint(1)\n```"


@pytest.fixture(scope="module")
def server(echo_server: RunningServer) -> RunningServer:
    return echo_server


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as script:
        yield script


@contextmanager
def ready(browser: Any, url: str, script: Script | None = None, **context: Any) -> Iterator[Any]:
    """The page, once it is ready: with two models, if there is a script for their answers."""
    with opened(browser, url, **context) as page:
        if script:
            offer_models(page, talker=True, teller=False)
            script.take(page, CHAT)
        page.goto("/")
        expect(status(page)).to_have_text("Ready.")
        yield page


@pytest.fixture
def page(browser: Any, server: RunningServer, script: Script) -> Iterator[Any]:
    with ready(browser, server.url, script) as page:
        yield page


@pytest.fixture
def text_page(browser: Any, server: RunningServer) -> Iterator[Any]:
    """The page in the mode Continue, on the real server."""
    with ready(browser, server.url) as page:
        mode(page, "Continue").check()
        yield page


def status(page: Any) -> Any:
    return page.get_by_role("status")


def prompt(page: Any) -> Any:
    return page.locator("#prompt")


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def mode(page: Any, name: str) -> Any:
    return page.get_by_role("radio", name=name)


def answers(page: Any) -> Any:
    return page.locator(".answer")


def figure(page: Any, name: str) -> Any:
    """The last figure of that name."""
    pairs = page.locator(".figures div").filter(has=page.get_by_text(name, exact=True))
    return pairs.locator("dd").last


def send(page: Any, text: str) -> None:
    prompt(page).fill(text)
    button(page, "Send").click()


def ask(page: Any, script: Script, text: str, *chunks: Any) -> Any:
    """Send a message, wait for its whole answer, and return the request."""
    script.answer(*(chunks or chat("An answer.")))
    send(page, text)
    expect(status(page)).to_have_text("Finished: the model ended the text.")
    return script.request()


def messages(request: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request.json["messages"]]


# A chat


def test_an_answer_grows_while_it_arrives_and_ends_with_its_figures(
    page: Any, script: Script
) -> None:
    go = threading.Event()
    script.answer(*chat("One ", "two")[:-1], go, delta(" three"), ending(prompt_tokens=9, tokens=5))
    send(page, "Count!")
    expect(answers(page)).to_have_text("One two")
    expect(status(page)).to_have_text("Writing…")
    expect(page.locator(".said")).to_have_text("Count!")
    expect(prompt(page)).to_have_value("")
    expect(figure(page, "Tokens")).to_have_text("2")
    expect(button(page, "Retry")).to_be_hidden()
    go.set()
    expect(answers(page)).to_have_text("One two three")
    expect(status(page)).to_have_text("Finished: the model ended the text.")
    expect(figure(page, "Tokens")).to_have_text("5")
    expect(figure(page, "Prompt tokens")).to_have_text("9")
    expect(figure(page, "Finish reason")).to_have_text("stop")
    expect(figure(page, "First token")).to_contain_text("s")
    assert float(figure(page, "Tokens/s").text_content()) > 0


def test_a_request_has_the_whole_chat_and_asks_for_a_stream_with_its_usage(
    page: Any, script: Script
) -> None:
    ask(page, script, "Hi", *chat("Hello *there*."))
    request = ask(page, script, "  And\nnow?")
    chat_so_far = [("user", "Hi"), ("assistant", "Hello *there*."), ("user", "  And\nnow?")]
    assert messages(request) == chat_so_far
    assert request.json["model"] == "talker"
    assert request.json["stream"] is True
    assert request.json["stream_options"] == {"include_usage": True}
    assert set(request.json) == {"model", "messages", "stream", "stream_options"}
    assert "authorization" not in request.headers


def test_what_is_set_is_sent_exactly_as_typed_and_what_is_empty_is_not(
    page: Any, script: Script
) -> None:
    button(page, "Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Random seed").fill("18446744073709551615")
    page.get_by_label("Temperature").fill(",50")
    page.get_by_label("Most likely tokens").fill(" 7 ")
    page.get_by_label("Repeat penalty").fill("none")
    page.get_by_label("Maximum tokens").fill("64")
    request = ask(page, script, "Hi")
    assert messages(request) == [("system", "Be brief."), ("user", "Hi")]
    expected = (
        ',"max_tokens":64,"temperature":0.50,"top_k":7,"repeat_penalty":"none"'
        ',"seed":18446744073709551615}'
    )
    assert request.body.endswith(expected)


def test_an_answer_is_the_same_however_its_bytes_are_split(page: Any, script: Script) -> None:
    text = "Grüße aus 世界 🙂,\n\n- one\n- two"
    whole = b": hello\r\n\r\n" + b"".join(chat(*text)).replace(b"\n\n", b"\r\n\r\n", 5)
    ask(page, script, "Hi", *(whole[at : at + 1] for at in range(len(whole))))
    assert (
        answers(page).inner_html() == "<p>Grüße aus 世界 🙂,</p><ul><li>one</li><li>two</li></ul>"
    )


def test_an_event_may_have_its_data_in_several_lines(page: Any, script: Script) -> None:
    first = json.dumps({"choices": [{"delta": {"content": "Both"}}]}, indent=1)
    lines = "".join(f"data:{line}\n" for line in first.split("\n"))
    ask(page, script, "Hi", b"event: message\nid: 1\n" + lines.encode() + b"\n", ending())
    expect(answers(page)).to_have_text("Both")


@pytest.mark.parametrize("way", ["the button", "Escape"])
def test_a_stop_ends_the_stream_and_keeps_what_was_written(
    page: Any, script: Script, way: str
) -> None:
    script.answer(*chat("Half an")[:-1], threading.Event())
    send(page, "Write!")
    expect(answers(page)).to_have_text("Half an")
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        button(page, "Stop").click()
        expect(prompt(page)).to_be_focused()
    expect(status(page)).to_have_text("Stopped.")
    expect(figure(page, "Finish reason")).to_have_text("stopped")
    expect(button(page, "Stop")).to_be_hidden()
    assert script.left.wait(10)
    script.request()
    assert messages(ask(page, script, "Go on"))[1] == ("assistant", "Half an")


def test_a_stop_before_the_first_token_gives_the_message_back(page: Any, script: Script) -> None:
    script.answer(threading.Event())
    send(page, "Write!")
    expect(status(page)).to_have_text("Reading the prompt…")
    page.keyboard.press("Escape")
    expect(status(page)).to_have_text("Stopped before the first token.")
    expect(prompt(page)).to_have_value("Write!")
    expect(page.locator(".turn")).to_have_count(0)
    script.answer(threading.Event())
    send(page, "Write!")
    prompt(page).fill("And then?")
    page.keyboard.press("Escape")
    expect(prompt(page)).to_have_value("Write!\n\nAnd then?")


def test_a_retry_takes_the_place_of_the_last_answer(page: Any, script: Script) -> None:
    ask(page, script, "Hi", *chat("First."))
    first = ask(page, script, "And?", *chat("Second."))
    script.answer(*chat("Better."))
    expect(button(page, "Retry")).to_have_count(1)
    button(page, "Retry").click()
    expect(answers(page)).to_have_text(["First.", "Better."])
    assert script.request().body == first.body


def test_a_retry_that_is_refused_keeps_the_answer(page: Any, script: Script) -> None:
    ask(page, script, "Hi", *chat("First."))
    script.refuse(400, "the prompt is too long")
    button(page, "Retry").click()
    expect(page.get_by_role("alert")).to_have_text("Not accepted: the prompt is too long.")
    expect(answers(page)).to_have_text(["First."])
    expect(prompt(page)).to_have_value("")


def test_a_message_is_not_sent_while_an_answer_is_written(page: Any, script: Script) -> None:
    go = threading.Event()
    script.answer(*chat("One")[:-1], go, ending())
    send(page, "Hi")
    expect(answers(page)).to_have_text("One")
    prompt(page).fill("Next")
    prompt(page).press("Enter")
    button(page, "Clear").click(force=True)
    expect(prompt(page)).to_have_value("Next")
    expect(page.locator(".turn")).to_have_count(2)
    go.set()
    expect(status(page)).to_contain_text("Finished")
    assert script.requests.qsize() == 1


def test_an_empty_message_is_not_sent(page: Any, script: Script) -> None:
    send(page, " \n ")
    ask(page, script, "Hi")
    assert script.requests.empty()


def test_an_answer_without_any_text_is_one(page: Any, script: Script) -> None:
    ask(page, script, "Hi", ending(tokens=0))
    expect(page.locator(".turn")).to_have_count(2)
    expect(figure(page, "Tokens")).to_have_text("0")


def test_clear_begins_a_new_chat(page: Any, script: Script) -> None:
    ask(page, script, "Hi")
    button(page, "Clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(prompt(page)).to_be_focused()
    assert messages(ask(page, script, "Hello")) == [("user", "Hello")]


# What is kept


def test_a_reload_changes_nothing(page: Any, script: Script) -> None:
    ask(page, script, "Hi", *chat("An *answer*."))
    button(page, "Settings").click()
    page.get_by_label("Random seed").fill("3")
    page.get_by_label("System prompt").fill("Be kind.")
    page.get_by_label("Model").select_option("teller")
    mode(page, "Chat").check()
    prompt(page).fill("A draft")
    figures = page.locator(".turn .figures").text_content()
    page.reload()
    expect(status(page)).to_have_text("Ready.")
    assert answers(page).inner_html() == "<p>An <em>answer</em>.</p>"
    assert page.locator(".turn .figures").text_content() == figures
    expect(page.get_by_label("Model")).to_have_value("teller")
    expect(mode(page, "Chat")).to_be_checked()
    expect(prompt(page)).to_have_value("A draft")
    request = ask(page, script, "And?")
    assert messages(request)[:2] == [("system", "Be kind."), ("user", "Hi")]
    assert request.json["seed"] == 3


def test_a_reload_in_the_middle_of_an_answer_keeps_what_was_written(
    page: Any, script: Script
) -> None:
    script.answer(*chat("Half an")[:-1], threading.Event())
    send(page, "Write!")
    expect(answers(page)).to_have_text("Half an")
    page.reload()
    expect(answers(page)).to_have_text("Half an")
    expect(figure(page, "Finish reason")).to_have_text("interrupted")
    expect(button(page, "Retry")).to_be_visible()


def test_a_browser_that_keeps_nothing_can_still_chat(
    browser: Any, server: RunningServer, script: Script
) -> None:
    with opened(browser, server.url) as page:
        page.add_init_script(
            "Object.defineProperty(window, 'sessionStorage', {get() { throw new Error('no'); }})"
        )
        offer_models(page, talker=True)
        script.take(page, CHAT)
        page.goto("/")
        expect(status(page)).to_have_text("Ready.")
        script.answer(*chat("An answer."))
        send(page, "Hi")
        expect(answers(page)).to_have_text("An answer.")
        expect(status(page)).to_have_text(
            "The browser has no space to keep the conversation over a reload."
        )


# Copies


@pytest.mark.parametrize("is_secure", [True, False])
def test_an_answer_and_its_code_can_be_copied(
    browser: Any, server: RunningServer, script: Script, is_secure: bool
) -> None:
    """Over plain HTTP from another machine, a page has no navigator.clipboard."""
    rights = ["clipboard-read", "clipboard-write"]
    with ready(browser, server.url, script, permissions=rights) as page:
        ask(page, script, "Hi", *chat(CODE))
        page.evaluate("window.clipboard = navigator.clipboard")
        if not is_secure:
            page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        button(page, "Copy this code").click()
        expect(status(page)).to_have_text("Copied.")
        assert page.evaluate("clipboard.readText()") == "print(1)"
        button(page, "Copy").click()
        page.wait_for_function("async () => (await clipboard.readText()).startsWith('Look')")
        assert page.evaluate("clipboard.readText()") == CODE


# What goes wrong


@pytest.mark.parametrize(
    ("status_code", "headers", "sentence"),
    [
        (400, {}, "Not accepted: no."),
        (404, {}, "The server refused: no."),
        (429, {"retry_after": "1"}, "The server is busy: no. Try again in 1 second."),
        (500, {}, "The server refused: no."),
        (503, {"retry_after": "5"}, "The server is not ready: no. Try again in 5 seconds."),
    ],
)
def test_a_refusal_is_a_sentence_and_the_message_can_be_sent_again(
    page: Any, script: Script, status_code: int, headers: dict[str, str], sentence: str
) -> None:
    script.refuse(status_code, "no", **headers)
    send(page, "Hi")
    expect(page.get_by_role("alert")).to_have_text(sentence)
    expect(prompt(page)).to_have_value("Hi")
    expect(page.locator(".turn")).to_have_count(0)
    script.request()
    expect(button(page, "Send")).to_have_attribute("aria-disabled", "false")
    assert messages(ask(page, script, "Hi")) == [("user", "Hi")]
    expect(page.get_by_role("alert")).to_have_text("")


def test_a_refusal_that_is_not_json_is_a_sentence(page: Any, script: Script) -> None:
    script.answer(b"<h1>Bad gateway</h1>", status=502)
    send(page, "Hi")
    expect(page.get_by_role("alert")).to_have_text("The server refused: HTTP status 502.")


@pytest.mark.parametrize("param", ["temperature", None])
def test_a_refused_field_is_marked_and_shown(page: Any, script: Script, param: str | None) -> None:
    script.refuse(400, "temperature must be a number from 0 to 2", param)
    send(page, "Hi")
    field = page.get_by_label("Temperature")
    expect(field).to_be_visible()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(
        "An empty field takes the server’s default. "
        "Not accepted: temperature must be a number from 0 to 2."
    )
    ask(page, script, "Hi")
    expect(page.locator("[aria-invalid]")).to_have_count(0)


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ([CUT], "The stream was cut before its end: the text may be incomplete."),
        ([], "The stream was cut before its end: the text may be incomplete."),
        ([event({"error": {"message": "it broke"}})], "The server could not go on: it broke."),
        ([b"data: {\n\n"], "The answer cannot be read: "),
    ],
)
def test_a_stream_that_fails_is_a_sentence_and_what_was_written_stays(
    page: Any, script: Script, last: list[Any], sentence: str
) -> None:
    go = threading.Event()  # a browser drops what it has not handed on when a connection breaks
    script.answer(*chat("Half an")[:-1], go, *last)
    send(page, "Hi")
    expect(answers(page)).to_have_text("Half an")
    go.set()
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(answers(page)).to_have_text("Half an")
    expect(figure(page, "Finish reason")).to_have_text("error")
    expect(button(page, "Retry")).to_be_visible()
    expect(prompt(page)).to_have_value("")


def test_a_server_that_is_away_is_waited_for(page: Any, script: Script) -> None:
    page.unroute(f"**{CHAT}")
    away = ["**/ready", f"**{CHAT}"]
    for path in away:
        page.route(path, lambda route: route.abort("connectionrefused"))
    send(page, "Hi")
    expect(page.get_by_role("alert")).to_have_text("The request did not reach the server.")
    expect(status(page)).to_have_text("The server cannot be reached. Trying again…")
    expect(button(page, "Send")).to_have_attribute("aria-disabled", "true")
    expect(prompt(page)).to_have_value("Hi")
    for path in away:
        page.unroute(path)
    script.take(page, CHAT)
    expect(status(page)).to_have_text("Ready.")
    ask(page, script, "Hi")


def test_the_page_says_why_the_server_is_not_ready(browser: Any, server: RunningServer) -> None:
    error = {"code": "not_ready", "message": "no worker is ready yet"}
    with opened(browser, server.url) as page:
        page.route("**/ready", lambda route: route.fulfill(status=503, json={"error": error}))
        page.goto("/")
        sentence = "Waiting for the server to load: no worker is ready yet."
        expect(status(page)).to_have_text(sentence)
        expect(button(page, "Send")).to_have_attribute("aria-disabled", "true")
        page.unroute("**/ready")
        expect(status(page)).to_have_text("Ready.")


# A key


def guard(page: Any, key: str) -> list[str]:
    """Let the server ask for a key; returns the paths that were asked for with it."""
    seen: list[str] = []

    def check(route: Any) -> None:
        if route.request.headers.get("authorization") == f"Bearer {key}":
            seen.append(route.request.url.rsplit("/", 1)[1])
            route.fallback()
        else:
            error = {"message": "a key is needed", "type": "authentication_error"}
            route.fulfill(status=401, json={"error": error})

    for path in ("**/ready", "**/v1/**", "**/stream"):
        page.route(path, check)
    return seen


def test_a_key_is_asked_for_and_sent_with_every_request(
    browser: Any, server: RunningServer, script: Script
) -> None:
    with opened(browser, server.url) as page:
        offer_models(page, talker=True)
        script.take(page, CHAT)
        seen = guard(page, "secret")
        page.goto("/")
        key = page.get_by_label("This server requires an API key")
        expect(key).to_be_focused()
        key.fill("ключ")
        key.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("A key is one word of ASCII characters.")
        key.fill("wrong")
        key.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
        key.fill("secret")
        button(page, "Use this key").click()
        expect(status(page)).to_have_text("Ready.")
        expect(key).to_be_hidden()
        expect(prompt(page)).to_be_focused()
        assert ask(page, script, "Hi").headers["authorization"] == "Bearer secret"
        page.reload()
        expect(status(page)).to_have_text("Ready.")
        expect(key).to_be_hidden()
        assert seen == ["ready", "models", "completions", "ready", "models"]


def test_a_key_that_is_asked_for_in_the_middle_costs_no_message(page: Any, script: Script) -> None:
    ask(page, script, "Hi")
    guard(page, "new")
    send(page, "And?")
    key = page.get_by_label("This server requires an API key")
    key.fill("new")
    key.press("Enter")
    expect(status(page)).to_have_text("Ready.")
    expect(prompt(page)).to_have_value("And?")
    script.answer(*chat("So."))
    prompt(page).press("Enter")
    expect(answers(page)).to_have_text(["An answer.", "So."])


# Models and modes


def test_a_model_brings_its_mode_and_the_reader_may_choose_the_other(page: Any) -> None:
    expect(mode(page, "Chat")).to_be_checked()
    page.get_by_label("Model").select_option("teller")
    expect(mode(page, "Continue")).to_be_checked()
    expect(prompt(page)).to_have_value("Once upon a time")
    expect(page.get_by_label("System prompt")).to_be_hidden()
    mode(page, "Chat").check()
    expect(page.locator("#welcome")).to_contain_text("no chat template")
    page.get_by_label("Model").select_option("talker")
    expect(mode(page, "Chat")).to_be_checked()


def test_each_mode_has_its_own_draft(page: Any) -> None:
    prompt(page).fill("A message")
    mode(page, "Continue").check()
    prompt(page).fill("A beginning")
    mode(page, "Chat").check()
    expect(prompt(page)).to_have_value("A message")
    mode(page, "Continue").check()
    expect(prompt(page)).to_have_value("A beginning")


# A text that is continued, on the real server


def write(page: Any, text: str, end: str = "Finished: the model ended the text.") -> None:
    prompt(page).fill(text)
    button(page, "Continue").click()
    expect(status(page)).to_have_text(end)


def test_a_text_grows_behind_its_prompt(text_page: Any) -> None:
    button(text_page, "Settings").click()
    text_page.get_by_label("Maximum tokens").fill("99")
    write(text_page, "Grüße 🙂 **x**.\n<b>")
    expect(text_page.locator("#given")).to_have_text("Grüße 🙂 **x**.\n<b>")
    expect(text_page.locator("#written")).to_have_text("Grüße 🙂 **x**.\n<b>")
    expect(figure(text_page, "Tokens")).to_have_text("23")
    expect(figure(text_page, "Prompt tokens")).to_have_text("23")
    expect(figure(text_page, "Finish reason")).to_have_text("stop")
    expect(prompt(text_page)).to_have_value("Grüße 🙂 **x**.\n<b>")


def test_a_text_is_continued_from_its_end_and_again_and_kept(text_page: Any) -> None:
    write(text_page, "ab,")
    button(text_page, "Continue from here").click()
    expect(text_page.locator("#given")).to_have_text("ab,ab,")
    expect(text_page.locator("#text")).to_have_text("ab,ab,ab,ab,")
    button(text_page, "Retry").click()
    expect(text_page.locator("#text")).to_have_text("ab,ab,ab,ab,")
    expect(status(text_page)).to_contain_text("Finished")
    text_page.reload()
    expect(status(text_page)).to_have_text("Ready.")
    expect(text_page.locator("#text")).to_have_text("ab,ab,ab,ab,")
    button(text_page, "Edit").click()
    expect(prompt(text_page)).to_have_value("ab,ab,ab,ab,")
    button(text_page, "Clear").click()
    expect(text_page.locator("#text")).to_be_hidden()


def test_a_stop_frees_the_slot_of_the_server(browser: Any, tmp_path: Path) -> None:
    path = echo_options(tmp_path, step_s=0.02)
    flags = ("--engine", "echo", "-m", str(path), "-n", "9999")
    with RunningServer(*flags) as slow, ready(browser, slow.url) as page:
        mode(page, "Continue").check()
        button(page, "Settings").click()
        page.get_by_label("Maximum tokens").fill("4000")
        prompt(page).fill("word " * 800)
        button(page, "Continue").click()
        expect(page.locator("#written")).to_contain_text("word")
        page.keyboard.press("Escape")
        expect(status(page)).to_have_text("Stopped.")
        slow.until_idle()
        expect(page.locator("#written")).to_contain_text("word")
        page.reload()
        expect(page.locator("#written")).to_contain_text("word")


def test_a_field_that_the_server_refuses_is_marked(text_page: Any) -> None:
    button(text_page, "Settings").click()
    text_page.get_by_label("Maximum tokens").fill("many")
    button(text_page, "Continue").click()
    expect(text_page.get_by_role("alert")).to_contain_text("Not accepted: num_predict must be")
    expect(text_page.get_by_label("Maximum tokens")).to_have_attribute("aria-invalid", "true")
    expect(text_page.locator("#tale")).to_be_hidden()


def test_an_engine_that_fails_and_a_worker_that_dies_are_sentences(
    browser: Any, tmp_path: Path
) -> None:
    path = echo_options(tmp_path, step_s=0.005)
    flags = ("--engine", "echo", "-m", str(path))
    with RunningServer(*flags) as failing, ready(browser, failing.url) as page:
        mode(page, "Continue").check()
        alert = page.get_by_role("alert")
        write(page, "well, [[fail]]", "")
        expect(alert).to_contain_text("The server could not go on: the prompt asked for a failure.")
        expect(page.locator("#written")).to_have_text("well, ")
        prompt(page).fill("well, [[segfault]]")
        button(page, "Continue").click()
        expect(alert).to_contain_text("The server could not go on: ")
        expect(alert).not_to_contain_text("asked for a failure")


def test_the_bundled_model_tells_a_tale(browser: Any) -> None:
    with RunningServer() as tales, ready(browser, tales.url) as page:
        expect(mode(page, "Continue")).to_be_checked()
        button(page, "Continue").click()
        expect(status(page)).to_have_text("Finished: the limit of tokens is reached.")
        assert len(page.locator("#written").text_content().split()) > 8


# How it looks, and how it is used without a mouse or without eyes


def luminance(color: str) -> float:
    red, green, blue = (int(part) for part in color[4:-1].split(","))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_light_or_dark_as_the_reader_likes(
    browser: Any, server: RunningServer, scheme: str
) -> None:
    with opened(browser, server.url, color_scheme=scheme) as page:
        offer_models(page, talker=True)
        page.goto("/")
        style = "getComputedStyle(document.body)"
        ground = luminance(page.evaluate(f"{style}.backgroundColor"))
        ink = luminance(page.evaluate(f"{style}.color"))
        assert (ground > 200 > 60 > ink) if scheme == "light" else (ground < 60 < 200 < ink)


def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Any, server: RunningServer, script: Script
) -> None:
    phone = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}
    wide = f"{'x' * 300}\n\n`{'y' * 300}`\n\n```\n{'z' * 300}\n```\n\n|{'a|' * 40}\n|{'-|' * 40}\n"
    with ready(browser, server.url, script, **phone) as page:
        offer_models(page, **{"a-model-with-a-name-" * 5: True})
        page.reload()
        expect(status(page)).to_have_text("Ready.")
        ask(page, script, "w" * 300, *chat(wide))
        button(page, "Settings").click()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        expect(page.locator("pre")).to_have_css("overflow-x", "auto")
        script.refuse(400, "v" * 300)
        send(page, "Hi")
        expect(page.get_by_role("alert")).to_contain_text("vvv")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        prompt(page).press("Enter")
        expect(prompt(page)).to_have_value("Hi\n")  # touch keyboards have no Shift+Enter


def test_everything_can_be_done_with_the_keyboard(page: Any, script: Script) -> None:
    def focused() -> str:
        return str(
            page.evaluate("""() => {
            const one = document.activeElement;
            return one.labels?.[0]?.textContent.trim() || one.ariaLabel || one.textContent.trim();
        }""")
        )

    def tab(times: int = 1) -> list[str]:
        names = []
        for _ in range(times):
            page.keyboard.press("Tab")
            names.append(focused())
        return names

    assert tab(5) == ["Model", "Chat", "Clear", "Settings", "Message"]
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    script.answer(*chat(CODE))
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("Finished")
    assert messages(script.request()) == [("user", "one\ntwo")]
    page.keyboard.press("Shift+Tab")
    assert focused() == "Retry"
    script.answer(*chat("Half")[:-1], threading.Event())
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("Half")
    page.keyboard.press("Escape")
    expect(status(page)).to_have_text("Stopped.")
    page.locator("#model").focus()
    assert tab(6) == ["Chat", "Clear", "Settings", "Copy", "Retry", "Message"]
    page.locator("#model").focus()
    tab()
    page.keyboard.press("ArrowRight")
    expect(mode(page, "Continue")).to_be_checked()
    page.keyboard.press("ArrowLeft")
    tab(2)
    page.keyboard.press("Enter")
    assert tab(8)[-2:] == ["Random seed seed", "Copy"]


def test_every_control_has_a_name(page: Any, script: Script) -> None:
    ask(page, script, "Hi", *chat(CODE))
    button(page, "Settings").click()
    expect(page.get_by_role("log", name="Conversation")).to_be_visible()
    controls = page.locator("button, select, input, textarea, pre, form#settings").filter(
        visible=True
    )
    for control in controls.all():
        name = control.evaluate(
            "one => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent"
        )
        assert name.strip(), control.evaluate("one => one.outerHTML")


def test_an_answer_is_read_out_block_by_block(page: Any, script: Script) -> None:
    """A screen reader reads what is added to the log; a block is added once it is whole."""
    go = threading.Event()
    script.answer(*chat("One.\n\n", "Two\n\n", "Thr")[:-1], go, delta("ee"), ending())
    send(page, "Hi")
    expect(page.locator(".answer > p")).to_have_text(["One.", "Two"])
    tail = page.locator(".answer > [aria-live=off]")
    expect(tail).to_have_text("Thr")
    expect(page.locator(".turn").last).to_have_attribute("aria-busy", "true")
    go.set()
    expect(page.locator(".answer > p")).to_have_text(["One.", "Two", "Three"])
    expect(tail).to_have_count(0)
    expect(page.locator(".turn").last).to_have_attribute("aria-busy", "false")


def test_a_reader_who_scrolled_up_stays_there_and_one_at_the_end_follows(
    page: Any, script: Script
) -> None:
    position = "document.documentElement.scrollTop"
    is_at_end = f"document.documentElement.scrollHeight - innerHeight - {position} < 2"
    first, last = threading.Event(), threading.Event()
    lines = "line\n\n" * 60
    script.answer(
        *chat(lines)[:-1], first, delta(lines + "up"), last, delta(lines + "end"), ending()
    )
    send(page, "Hi")
    expect(page.locator(".answer p")).to_have_count(60)
    assert page.evaluate(is_at_end)
    page.evaluate("scrollTo(0, 100)")
    first.set()
    expect(answers(page)).to_contain_text("up")
    assert page.evaluate(position) == 100
    page.evaluate("scrollTo(0, 1e9)")
    last.set()
    expect(answers(page)).to_contain_text("end")
    expect(status(page)).to_contain_text("Finished")
    assert page.evaluate(is_at_end)


# What is hostile


def test_a_hostile_answer_of_100_000_tokens_is_harmless_and_shown(
    page: Any, script: Script
) -> None:
    """A paragraph, a fence and a list that never end, each of a token a character."""
    hostile = "<script>document.title='owned'</script>" * 1000 + "\n```\n" + "x\n" * 30_000
    events = [delta(character) for character in hostile]
    chunks = [b"".join(events[at : at + 50]) for at in range(0, len(events), 50)]
    script.answer(*chunks, ending(tokens=len(hostile)))
    send(page, "Hi")
    expect(status(page)).to_contain_text("Finished", timeout=60_000)
    assert page.locator(".answer code").text_content() == "x\n" * 30_000
    assert page.locator("script").count() == 1
    assert page.title() == "tokenflume"


def test_a_violation_of_the_policy_is_noticed_by_these_tests(
    browser: Any, server: RunningServer
) -> None:
    inline = "document.body.setAttribute('style', 'color: red')"
    script = "document.body.append(Object.assign(document.createElement('script'), {text: '1'}))"
    for violation in (script, f"document.body.innerHTML = '<p style=\"color: red\">'; {inline}"):
        with ExitStack() as stack, pytest.raises(AssertionError, match="policy: "):
            page = stack.enter_context(opened(browser, server.url))
            offer_models(page, talker=True)
            page.goto("/")
            expect(status(page)).to_have_text("Ready.")
            page.evaluate(violation)
            stack.close()
