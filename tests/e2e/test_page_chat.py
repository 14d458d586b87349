"""The page's chat on the real POST /v1/chat/completions: the echo engine says the prompt again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import opened
from tests.helpers.running import RunningServer
from tests.helpers.support import echo_options

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Its turns end with a control token, so an echo goes on past the end of the first one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = echo_options(tmp_path_factory.mktemp("echo"), chat_template=TEMPLATE)
    with RunningServer("--engine", "echo", "-m", str(options)) as running:
        yield running


@contextmanager
def chatting(browser: Any, url: str) -> Iterator[Any]:
    """The page, once it is ready for a chat with answers of up to 1,000 tokens."""
    with opened(browser, url) as page:
        page.goto("/")
        expect(page.get_by_role("status")).to_have_text("Ready.")
        page.get_by_role("radio", name="Chat").check()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Maximum tokens").fill("1000")
        yield page


@pytest.fixture
def page(browser: Any, server: RunningServer) -> Iterator[Any]:
    with chatting(browser, server.url) as page:
        yield page


def send(page: Any, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.get_by_role("button", name="Send").click()


def finished(page: Any) -> None:
    expect(page.get_by_role("status")).to_have_text("Finished: the model ended the text.")


def test_the_models_of_the_server_are_offered(page: Any, server: RunningServer) -> None:
    models = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    assert page.locator("#model option").all_text_contents() == models


def test_an_answer_has_the_exact_text_and_the_server_s_figures(page: Any) -> None:
    send(page, "Grüße aus 世界 🙂, 2 < 3")
    finished(page)
    expect(page.locator(".answer")).to_contain_text("Grüße aus 世界 🙂, 2 < 3")
    figures = page.locator(".turn .figures").last
    expect(figures).to_contain_text("Finish reasonstop")
    prompt, answer = (
        int(figures.locator("div").filter(has=page.get_by_text(name, exact=True)).locator("dd")
            .text_content())
        for name in ("Prompt tokens", "Tokens")
    )  # fmt: skip
    assert prompt == answer > 30


def test_the_system_prompt_and_the_whole_chat_are_sent(page: Any) -> None:
    page.get_by_label("System prompt").fill("Speak of whales.")
    send(page, "First question")
    finished(page)
    page.get_by_role("button", name="Clear").click()
    send(page, "Other question")
    finished(page)
    send(page, "Last question")
    expect(page.locator(".answer")).to_have_count(2)
    finished(page)
    last = page.locator(".answer").last
    for text in ("Speak of whales.", "Other question", "Last question"):
        expect(last).to_contain_text(text)
    expect(last).not_to_contain_text("First question")


def test_a_retry_asks_the_same_again(page: Any) -> None:
    send(page, "Once more")
    finished(page)
    text = page.locator(".answer").text_content()
    page.get_by_role("button", name="Retry").click()
    finished(page)
    expect(page.locator(".answer")).to_have_text([text])


def test_the_limit_of_tokens_is_the_reader_s(page: Any) -> None:
    page.get_by_label("Maximum tokens").fill("3")
    send(page, "Hello")
    expect(page.get_by_role("status")).to_have_text("Finished: the limit of tokens is reached.")
    expect(page.locator(".turn .figures")).to_contain_text("Tokens3")


def test_a_field_out_of_its_range_is_marked(page: Any) -> None:
    page.get_by_label("Temperature").fill("hot")
    send(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("Not accepted: temp")
    expect(page.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#prompt")).to_have_value("Hello")


def test_a_message_that_does_not_fit_is_given_back(page: Any) -> None:
    send(page, "word " * 1000)
    expect(page.get_by_role("alert")).to_contain_text("Not accepted: ")
    expect(page.locator("#prompt")).to_have_value("word " * 1000)
    expect(page.locator(".turn")).to_have_count(0)


def test_a_failure_in_the_middle_of_an_answer_is_a_sentence(page: Any) -> None:
    send(page, "well, [[fail]]")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server could not go on: the prompt asked for a failure.")
    expect(page.locator(".answer")).to_contain_text("well, ")


def test_a_worker_that_dies_is_waited_for(page: Any, server: RunningServer) -> None:
    send(page, "[[prefill segfault]]")
    expect(page.get_by_role("alert")).to_contain_text("The server is not ready: ")
    expect(page.locator("#prompt")).to_have_value("[[prefill segfault]]")
    expect(page.get_by_role("status")).to_have_text("Ready.", timeout=15_000)
    send(page, "Hello again")
    finished(page)


@pytest.mark.parametrize("way", ["the button", "Escape"])
def test_a_stop_frees_the_slot_of_the_server(browser: Any, tmp_path: Path, way: str) -> None:
    path = echo_options(tmp_path, step_s=0.02)
    flags = ("--engine", "echo", "-m", str(path))
    with RunningServer(*flags) as slow, chatting(browser, slow.url) as page:
        send(page, "word " * 150)
        expect(page.locator(".answer")).to_contain_text("word")
        if way == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_have_text("Stopped.")
        slow.until_idle()


def test_a_server_with_keys_is_used_with_one(browser: Any, tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", "k" * 32
    keys.write_text(f"reader {key}\n")
    options = echo_options(tmp_path, chat_template=TEMPLATE)
    flags = ("--engine", "echo", "-m", str(options), "--api-key-file", str(keys))
    with RunningServer(*flags, wait_ready=False) as guarded:
        guarded.client.headers["x-api-key"] = key
        guarded.until_ready()
        with opened(browser, guarded.url) as page:
            page.goto("/")
            field = page.get_by_label("This server requires an API key")
            field.fill("not the key of this server")
            field.press("Enter")
            expect(page.get_by_role("alert")).to_be_visible()
            field.fill(key)
            field.press("Enter")
            expect(page.get_by_role("status")).to_have_text("Ready.")
            send(page, "Hello")
            finished(page)
            expect(page.locator(".answer")).to_contain_text("Hello")
