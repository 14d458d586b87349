"""Fault 55: addresses that a request says itself."""

from __future__ import annotations

import uuid

import pytest

from tests.helpers.running import RunningServer, run_to_its_end

FORGED = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}


def client_in_log(server: RunningServer, forwarded: str) -> str:
    """The client's address in the log's line of a request with this X-Forwarded-For."""
    name = uuid.uuid4().hex
    headers = {**FORGED, "x-forwarded-for": forwarded, "x-request-id": name}
    answer = server.client.post("/stream", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 200
    line = server.wait_for_log(f"{name} of ")
    return line.partition(f"{name} of ")[2].partition(": /stream")[0]


def scheme_in_redirect(server: RunningServer) -> str:
    """The scheme of a redirect, for a request with X-Forwarded-Proto: https."""
    answer = server.client.get("/health/", headers=FORGED, follow_redirects=False)
    return str(answer.headers["location"]).partition(":")[0]


@pytest.mark.parametrize("flags", [(), ("--trusted-proxy", "192.0.2.1")], ids=["none", "another"])
def test_fault_55_a_forged_address_is_ignored(flags: tuple[str, ...]) -> None:
    """Reported: any local client chose its address, for the log and the queue's turns, because
    uvicorn believes X-Forwarded-For of loopback; and of all with FORWARDED_ALLOW_IPS=*."""
    with RunningServer("--engine", "echo", *flags, FORWARDED_ALLOW_IPS="*") as server:
        for forwarded in ("203.0.113.9", "::1", "a" * 5000, ""):
            assert client_in_log(server, forwarded) == "127.0.0.1"
        assert scheme_in_redirect(server) == "http"


def test_fault_55_a_trusted_proxy_tells_the_last_untrusted_hop() -> None:
    flags = ("--trusted-proxy", "127.0.0.0/8", "--trusted-proxy", "2001:db8::5")
    expected = {
        "203.0.113.9": "203.0.113.9",
        "198.51.100.7, 203.0.113.9": "203.0.113.9",  # the first one is what the client said
        "203.0.113.9:4711, 127.0.0.2": "203.0.113.9",
        "[2001:db8::1]:80, 2001:db8::5": "2001:db8::1",
        "::ffff:203.0.113.9": "203.0.113.9",
        "127.0.0.3": "127.0.0.3",
        "203.0.113.9, unknown": "127.0.0.1",
        "fe80::1%" + "a" * 5000: "127.0.0.1",
        "203.0.113.8," + "127.0.0.9," * 3000 + "127.0.0.1": "127.0.0.9",
        "": "127.0.0.1",
    }
    with RunningServer("--engine", "echo", *flags) as server:
        assert {given: client_in_log(server, given) for given in expected} == expected
        assert scheme_in_redirect(server) == "https"


@pytest.mark.parametrize("value", ["localhost", "*", "10.0.0.1/8", ""])
def test_fault_55_a_trusted_proxy_must_be_an_address(value: str) -> None:
    ended = run_to_its_end("--engine", "echo", "--trusted-proxy", value)
    assert ended.returncode == 2
    assert "--trusted-proxy must be an IP address or a network" in ended.stderr
