"""Faults 33, 39 and 41: foreign hosts and origins, paths that lead out, keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.running import RunningServer, run_to_its_end

ALICE, BOB = "alice-" + "k" * 30, "bob-" + "z" * 32


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who may\nalice {ALICE}\n\nbob   {BOB}\n")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    prompts = tmp_path_factory.mktemp("prompts")
    flags = ("--cache-dir", str(prompts), "--allowed-host", "models.example")
    with RunningServer(
        "--engine", "echo", *flags, "--cors-origin", "https://chat.example"
    ) as running:
        running.prompts = prompts  # type: ignore[attr-defined]
        yield running


@pytest.fixture(scope="module")
def guarded(key_file: Path) -> Iterator[RunningServer]:
    with RunningServer(
        "--engine", "echo", "--api-key-file", str(key_file), wait_ready=False
    ) as running:
        running.client.headers["authorization"] = f"Bearer {ALICE}"
        running.until_ready()
        del running.client.headers["authorization"]
        yield running
        running.client.headers["authorization"] = f"Bearer {ALICE}"


# ---------------------------------------------------------------- 33


@pytest.mark.parametrize(
    "host",
    [
        "evil",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "models.example.evil",
        "",
        "[::1",
        "localhost@evil",
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/ui/app.js", "/v1/models"])
def test_fault_33_a_request_for_another_host_is_refused(
    server: RunningServer, path: str, host: str
) -> None:
    answer = server.client.get(path, headers={"host": host})
    assert answer.status_code == 400
    assert "host" in answer.text.lower()


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8080", "10.1.2.3", "models.example:443"],
)
def test_fault_33_our_own_names_and_addresses_are_served(server: RunningServer, host: str) -> None:
    assert server.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://localhost.evil.com",
        "http://evil.example",
        "null",
        "https://chat.example.evil",
        "http://chat.example",
        "https://chat.example:444",
        "http://127.0.0.1:1",
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_fault_33_a_page_of_another_origin_is_refused_without_cors_headers(
    server: RunningServer, origin: str, method: str
) -> None:
    headers = {"origin": origin, "content-type": "text/plain"}
    if method == "OPTIONS":
        headers["access-control-request-method"] = "POST"
    answer = server.client.request(method, "/stream", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


def test_fault_33_our_own_page_and_a_named_origin_may_ask(server: RunningServer) -> None:
    for origin in (server.url, "https://chat.example"):
        answer = server.client.post("/stream", json={"prompt": "x"}, headers={"origin": origin})
        assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"


# ---------------------------------------------------------------- 39

LEADING_OUT = [
    "../secret",
    "..%2fsecret",
    "%2e%2e/secret",
    "%2e%2e%2fsecret",
    "..%5csecret",
    "..∕secret",
    "%E2%88%95etc",
    "/etc/passwd",
    "%00",
    "..;/secret",
    "....//secret",
]


@pytest.mark.parametrize("path", LEADING_OUT)
@pytest.mark.parametrize("place", ["/ui/", "/cache/", "/v1/models/"])
def test_fault_39_no_path_leads_out(server: RunningServer, place: str, path: str) -> None:
    folder: Path = server.prompts  # type: ignore[attr-defined]
    secret = folder.parent / "secret"
    secret.write_text("do not tell")
    method = "DELETE" if place == "/cache/" else "GET"
    answer = server.client.request(method, server.url + place + path)
    assert answer.status_code in (400, 404, 405)
    assert "do not tell" not in answer.text
    assert secret.read_text() == "do not tell"


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "..∕x", "a\\b", "x" * 10_000])
def test_fault_39_no_model_name_leads_out(server: RunningServer, name: str) -> None:
    for path, body in (
        ("/stream", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        answer = server.client.post(path, json={**body, "model": name})
        assert answer.status_code == 404
        assert len(answer.text) < 1000


@pytest.mark.parametrize("cache", ["../../etc", "7/../8", "7\\u0000"])
def test_fault_39_no_cache_id_leads_out(server: RunningServer, cache: str) -> None:
    assert server.post(prompt="x", cache=cache).status_code == 400


# ---------------------------------------------------------------- 41

WRONG: list[dict[str, str]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer wrong-key-of-some-length"},
    {"authorization": f"Bearer {ALICE}x"},
    {"authorization": f"Bearer {ALICE[:-1]}"},
    {"authorization": f"Bearer {ALICE.upper()}"},
    {"authorization": f"Basic {ALICE}"},
    {"authorization": "Bearer alice"},
    {"x-api-key": "alice"},
]
GUARDED = [
    ("GET", "/ready"),
    ("GET", "/cache"),
    ("DELETE", "/cache/7"),
    ("POST", "/stream"),
    ("POST", "/token_stream"),
    ("GET", "/v1/models"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/nothing-here"),
    ("GET", "//health"),
    ("GET", "/health/"),
    ("GET", "/ui"),
]


@pytest.mark.parametrize("headers", WRONG, ids=repr)
def test_fault_41_a_wrong_or_missing_key_is_a_401(
    guarded: RunningServer, headers: dict[str, str]
) -> None:
    for method, path in GUARDED:
        answer = guarded.client.request(method, guarded.url + path, headers=headers)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]


@pytest.mark.parametrize("key", [ALICE, BOB])
@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_fault_41_a_known_key_opens_every_path(guarded: RunningServer, key: str, name: str) -> None:
    headers = {name: f"Bearer {key}" if name == "authorization" else key}
    for method, path in GUARDED:
        answer = guarded.client.request(method, guarded.url + path, headers=headers)
        assert answer.status_code != 401, (method, path)


def test_fault_41_health_and_the_page_itself_need_none(guarded: RunningServer) -> None:
    for path in ("/health", "/", "/ui/app.js"):
        assert guarded.client.get(path).status_code == 200


def test_fault_41_keys_are_never_in_the_log_nor_in_an_answer(guarded: RunningServer) -> None:
    answers = [
        guarded.client.post("/stream", json={"prompt": "x"}, headers={"authorization": value})
        for value in (f"Bearer {ALICE}", f"Bearer {ALICE}x", f"Basic {BOB}")
    ]
    for key in (ALICE, BOB):
        assert not any(key in line for line in guarded.log)
        assert not any(key in answer.text + repr(answer.headers) for answer in answers)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "contains no key"),
        ("# nobody\n", "contains no key"),
        ("alice\n", "line 1 must be a name and a key"),
        ("alice short\n", "at least 16 characters"),
        (f"alice {ALICE}\nalice {BOB}\n", "line 2: the name or the key appears twice"),
        (f"alice {ALICE}\nbob {ALICE}\n", "line 2: the name or the key appears twice"),
        (f"a/b {ALICE}\n", "line 1 must be a name and a key"),
    ],
)
def test_fault_41_a_bad_file_of_keys_ends_with_status_3_and_tells_no_key(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    ended = run_to_its_end("--engine", "echo", "--api-key-file", str(path))
    assert ended.returncode == 3
    assert words in ended.stderr
    assert "kkkk" not in ended.stderr


def test_a_bind_beyond_this_machine_without_keys_is_refused(key_file: Path) -> None:
    ended = run_to_its_end("--engine", "echo", "--host", "0.0.0.0")
    assert ended.returncode == 3
    assert "--api-key-file, or --insecure" in ended.stderr


@pytest.mark.parametrize("extra", ["--insecure", "keys"])
def test_with_keys_or_on_purpose_it_is_not(key_file: Path, extra: str) -> None:
    flags = ("--api-key-file", str(key_file)) if extra == "keys" else (extra,)
    # A network of one's own in the loopback range: beyond 127.0.0.1, but nobody else's.
    with RunningServer(
        "--engine", "echo", "--host", "127.0.0.2", *flags, wait_ready=False
    ) as server:
        assert server.client.get("/health").status_code == 200


def test_every_answer_has_the_security_headers(server: RunningServer) -> None:
    for path in ("/", "/health", "/ready", "/nothing", "/v1/models", "/ui/app.js"):
        headers: Any = server.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
