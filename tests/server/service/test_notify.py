"""The notify protocol, over real datagram sockets."""

from __future__ import annotations

import logging
import os
import time
import uuid
from pathlib import Path

import pytest

from server.hub.progress import Lines
from server.service.notify import Notifier, monotonic_us, notifier_of, take_notifier
from server.service.reload import Reload, reload_all
from shared.errors import ConfigurationError
from tests.helpers.notify_socket import notify_socket


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@tokenflume-{uuid.uuid4()}" if request.param == "abstract" else f"{tmp_path}/notify"


def test_a_message_is_one_datagram_of_lines(address: str) -> None:
    with notify_socket(address) as manager:
        assert Notifier(address).send(READY=1, STATUS="2 streams")
        assert manager.receive() == {"READY": "1", "STATUS": "2 streams"}


def test_a_status_of_several_lines_sets_no_other_field(address: str) -> None:
    with notify_socket(address) as manager:
        Notifier(address).send(STATUS="cannot load:\nREADY=1")
        assert manager.receive() == {"STATUS": "cannot load: READY=1"}


def test_nothing_is_sent_where_there_is_nothing_to_say(address: str) -> None:
    with notify_socket(address) as manager:
        assert Notifier(address).send()
        assert manager.receive(0.05) is None


def test_without_a_manager_nothing_is_heard_and_nothing_fails() -> None:
    notifier = notifier_of({})
    assert not notifier.is_heard
    assert notifier.watchdog_s is None
    assert notifier.send(READY=1)


def test_a_manager_that_is_gone_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not Notifier(f"{tmp_path}/gone").send(READY=1)
    assert "cannot notify the service manager" in caplog.text


def test_a_manager_that_reads_nothing_holds_nobody_up(address: str) -> None:
    with notify_socket(address):
        notifier = Notifier(address)
        sent = 0
        while notifier.send(STATUS="x" * 1000):
            sent += 1
            assert sent < 100_000


def test_what_the_environment_says_is_taken_out_of_it() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = take_notifier(environment)
    assert notifier.is_heard
    assert notifier.watchdog_s == 3.0
    assert environment == {"HOME": "/"}


def test_another_process_s_watchdog_is_not_fed() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}
    assert notifier_of(environment).watchdog_s == 3.0
    assert notifier_of({**environment, "WATCHDOG_PID": "1"}).watchdog_s is None


@pytest.mark.parametrize("value", ["0", "-5", "3s", "1e6", "²", str(2**63)])
def test_a_watchdog_interval_that_is_none_is_a_warning(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert notifier_of({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": value}).watchdog_s is None
    assert "WATCHDOG_USEC is not a number of microseconds" in caplog.text


@pytest.mark.parametrize("value", ["vsock:2:1234", "relative", "@", "/"])
def test_an_address_that_is_none_is_a_warning(value: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not notifier_of({"NOTIFY_SOCKET": value}).is_heard
    assert "NOTIFY_SOCKET is not the address" in caplog.text


def test_the_stamp_of_a_reload_is_the_monotonic_clock_in_microseconds() -> None:
    assert abs(monotonic_us() - time.monotonic() * 1e6) < 1e6


def test_a_download_says_how_far_it_is_and_asks_for_more_time(address: str) -> None:
    with notify_socket(address) as manager:
        lines = Lines("model.gguf", 1000, 0, every_s=0.0, notifier=Notifier(address))
        lines.add(400)
        message = manager.receive()
    assert message is not None
    assert message["STATUS"].startswith("downloading model.gguf: 40 %, ")
    assert int(message["EXTEND_TIMEOUT_USEC"]) > 10_000_000


def test_what_can_be_read_again_is_and_what_cannot_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    read: list[str] = []

    def broken() -> None:
        raise ConfigurationError("keys.txt cannot be read")

    caplog.set_level(logging.INFO)
    reloads = [Reload("API keys", broken), Reload("system prompts", lambda: read.append("p"))]
    assert reload_all(reloads) == ["API keys: keys.txt cannot be read"]
    assert read == ["p"]
    assert "API keys: keys.txt cannot be read; the old ones stay in use" in caplog.text
    assert "reloaded system prompts" in caplog.text
