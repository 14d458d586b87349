"""Models by name: fetched once from a stand-in of the hub, resumed, checked, refused."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hub_server import FIRST, StandIn, environment, hub_server, sha256
from tests.helpers.paths import ROOT
from tests.helpers.running import RunningServer, run_to_its_end

NAME = "hf:owner/tales/q8/tales.gguf"
SECOND = "2" * 40
MOST_OVER_HTTP = 50 * 10**9
"""Bytes of a file; the hub's limit, which huggingface_hub knows."""
PARTS = [f"big-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


class Hub:
    """The stand-in, and starts of the server with it in an own home."""

    def __init__(self, stand_in: StandIn, home: Path) -> None:
        self.stand_in = stand_in
        self.home = home

    def start(self, name: str = NAME, **variables: str) -> subprocess.CompletedProcess[str]:
        """Start, and end when the model is there: what --plan does."""
        return run_to_its_end("--plan", "-m", name, **self.variables(**variables))

    def refused(self, name: str = NAME, **variables: str) -> str:
        """Fails unless the start ends with one sentence; the sentence."""
        done = self.start(name, **variables)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        *_, last = done.stderr.splitlines()
        assert last.startswith("tokenflume: ")
        return last

    def variables(self, **more: str) -> dict[str, str]:
        return environment(self.stand_in, self.home, **more)

    def has(self, name: str, data: bytes) -> bool:
        """Whether the cache has the file under its hash, and no other of its kind."""
        blob = self.blobs / sha256(data)
        return blob.exists() and blob.read_bytes() == data

    @property
    def blobs(self) -> Path:
        return self.home / "hub" / "models--owner--tales" / "blobs"

    def until_held(self) -> None:
        assert self.stand_in.holding.wait(30)


@pytest.fixture
def model(llama_gguf: Path) -> bytes:
    return llama_gguf.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in [name for name in os.environ if name.startswith(("HF_", "TOKENFLUME_"))]:
        monkeypatch.delenv(name)
    with hub_server() as stand_in:
        stand_in.add("owner/tales", "q8/tales.gguf", model)
        yield Hub(stand_in, tmp_path / "home")


def test_a_model_named_so_is_fetched_and_answers(
    hub: Hub, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hub.variables().items():
        monkeypatch.setenv(name, value)
    with RunningServer("-m", NAME, "--slots", "1", "-n", "64", "-t", "1") as running:
        assert running.ndjson(prompt="Once", num_predict=4)[-1]["done"]
        running.log_has(rf"{NAME}: downloaded {len(model):,} bytes in \d+\.\d s .*{FIRST}")
        assert "httpx" not in "".join(running.log)


def test_a_second_start_does_not_touch_the_network(hub: Hub) -> None:
    assert hub.start().returncode == 0
    hub.stand_in.requests.clear()
    done = hub.start()
    assert done.returncode == 0
    assert hub.stand_in.requests == []
    assert f"{NAME} is in the cache, at commit {FIRST}" in done.stderr
    assert "hf cache rm hf://models/owner/tales/q8/tales.gguf" in done.stderr


def test_a_commit_that_is_in_the_cache_needs_no_network_and_no_advice(hub: Hub) -> None:
    assert hub.start(f"{NAME}@{FIRST}").returncode == 0
    hub.stand_in.requests.clear()
    done = hub.start(f"{NAME}@{FIRST}")
    assert (done.returncode, hub.stand_in.requests) == (0, [])
    assert "newer" not in done.stderr


def test_a_branch_stays_where_it_was_until_another_commit_is_named(hub: Hub, model: bytes) -> None:
    newer = model + b"\0"
    hub.start()
    hub.stand_in.add("owner/tales", "q8/tales.gguf", newer, SECOND)
    assert f"at commit {FIRST}" in hub.start().stderr
    assert not hub.has(NAME, newer)
    assert f"commit {SECOND}" in hub.start(f"{NAME}@{SECOND}").stderr
    assert hub.has(NAME, newer)


def test_what_the_librarys_own_tool_removes_is_fetched_again(hub: Hub, model: bytes) -> None:
    hub.start()
    variables = hub.variables(HF_HUB_DISABLE_UPDATE_CHECK="1")
    subprocess.run(
        [Path(sys.executable).with_name("hf"), "cache", "rm", "--yes",
         "hf://models/owner/tales/q8/tales.gguf"],
        env={**os.environ, **variables}, check=True, capture_output=True,
    )  # fmt: skip
    assert not hub.has(NAME, model)
    assert f"downloaded {len(model):,} bytes" in hub.start().stderr
    assert hub.has(NAME, model)


def test_the_library_finds_what_was_fetched(hub: Hub, model: bytes) -> None:
    hub.start()
    script = (
        "from huggingface_hub import hf_hub_download\n"
        "print(hf_hub_download('owner/tales', 'q8/tales.gguf', local_files_only=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **hub.variables()}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).read_bytes() == model


def test_a_revision_with_a_slash_is_a_branch(hub: Hub) -> None:
    hub.stand_in.repositories["owner/tales"].refs["refs/pr/1"] = FIRST
    assert hub.start(f"{NAME}@refs/pr/1").returncode == 0
    hub.stand_in.requests.clear()
    assert hub.start(f"{NAME}@refs/pr/1", HF_HUB_OFFLINE="1").returncode == 0


def test_a_connection_that_breaks_is_made_again_and_goes_on(hub: Hub, model: bytes) -> None:
    hub.stand_in.cuts = [70_000, 0, 20_000]
    done = hub.start()
    assert done.returncode == 0, done.stderr
    assert hub.has(NAME, model)
    ranges = [request.range for request in hub.stand_in.asked("cdn")]
    assert ranges == ["bytes=0-", "bytes=70000-", "bytes=70000-", "bytes=90000-"]
    assert f"downloaded {len(model):,} bytes" in done.stderr


def test_a_download_that_was_killed_goes_on_at_the_next_start(hub: Hub, model: bytes) -> None:
    process = start_held(hub, 50_000)
    process.kill()
    process.communicate()
    hub.stand_in.hold = None
    done = hub.start()
    assert hub.has(NAME, model)
    assert hub.stand_in.asked("cdn")[-1].range == "bytes=50000-"
    assert f"downloaded {len(model) - 50_000:,} bytes" in done.stderr
    assert list(hub.blobs.glob("*.incomplete")) == []


def test_two_starts_at_a_time_fetch_it_once(hub: Hub) -> None:
    first = start_held(hub, 50_000)
    second = start_alone(hub)
    assert second.stderr is not None
    while "another process is downloading this file" not in second.stderr.readline():
        assert second.poll() is None
    hub.stand_in.hold = None
    hub.stand_in.release.set()
    for process in (first, second):
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert len(hub.stand_in.asked("cdn")) == 1


def test_ctrl_c_ends_a_download_without_a_traceback(hub: Hub) -> None:
    process = start_held(hub, 50_000)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log


def start_alone(hub: Hub) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "server", "--plan", "-m", NAME],
        cwd=ROOT, env={**os.environ, **hub.variables()}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_held(hub: Hub, after: int) -> subprocess.Popen[str]:
    """A start whose download stands still once so many bytes are in the file."""
    hub.stand_in.hold = after
    process = start_alone(hub)
    hub.until_held()
    deadline = time.monotonic() + 30
    while sum(file.stat().st_size for file in hub.blobs.glob("*.incomplete")) < after:
        assert time.monotonic() < deadline, "the bytes never came"
        time.sleep(0.01)
    return process


def test_a_store_that_knows_no_ranges_sends_all_of_it_again(hub: Hub, model: bytes) -> None:
    hub.stand_in.ignore_ranges = True
    hub.stand_in.cuts = [70_000]
    done = hub.start()
    assert hub.has(NAME, model)
    assert f"downloaded {len(model) + 70_000:,} bytes" in done.stderr


def test_a_damaged_download_is_deleted_and_the_next_one_is_whole(hub: Hub, model: bytes) -> None:
    hub.stand_in.damage = True
    sentence = hub.refused()
    assert "arrived damaged and was deleted: its SHA-256 is" in sentence
    assert sha256(model) in sentence
    assert list(hub.blobs.iterdir()) == []
    hub.stand_in.damage = False
    assert hub.start().returncode == 0
    assert hub.has(NAME, model)


def test_a_hub_that_says_a_wrong_size_is_not_believed(hub: Hub) -> None:
    hub.stand_in.sizes["q8/tales.gguf"] = 1000
    assert "bytes instead of 1,000" in hub.refused()
    assert list(hub.blobs.iterdir()) == []


def test_all_parts_of_a_split_model_are_fetched_at_one_commit(hub: Hub) -> None:
    for index, part in enumerate(PARTS):
        hub.stand_in.add("owner/tales", part, b"GGUF%d" % index)
    assert hub.start(f"hf:owner/tales/{PARTS[1]}").returncode == 0
    snapshot = hub.blobs.parent / "snapshots" / FIRST
    assert sorted(path.name for path in snapshot.iterdir()) == PARTS
    hub.stand_in.requests.clear()
    assert hub.start(f"hf:owner/tales/{PARTS[0]}").returncode == 0
    assert hub.stand_in.requests == []


def test_a_split_model_with_a_part_missing_is_fetched_on(hub: Hub) -> None:
    for part in PARTS[:2]:
        hub.stand_in.add("owner/tales", part, part.encode())
    assert "has no such file" in hub.refused(f"hf:owner/tales/{PARTS[0]}")
    hub.stand_in.add("owner/tales", PARTS[2], PARTS[2].encode())
    hub.start(f"hf:owner/tales/{PARTS[0]}")
    fetched = [request.path.strip("/") for request in hub.stand_in.asked("cdn")]
    assert fetched == [sha256(part.encode()) for part in PARTS]


def test_the_token_goes_to_the_hub_and_not_to_the_store(hub: Hub) -> None:
    hub.stand_in.token = "secret"
    assert hub.start(HF_TOKEN="secret").returncode == 0
    assert {request.token for request in hub.stand_in.asked("hub")[1:]} == {"secret"}
    assert {request.token for request in hub.stand_in.asked("cdn")} == {""}


def test_without_its_token_a_repository_is_refused_with_the_variables_name(hub: Hub) -> None:
    hub.stand_in.token = "secret"
    sentence = hub.refused()
    assert (
        "has no owner/tales, or a request without a token (HF_TOKEN is not set) may not" in sentence
    )
    assert "the account of the token (HF_TOKEN) may not" in hub.refused(HF_TOKEN="wrong")


@pytest.mark.parametrize("token", ["", "secret"])
def test_a_gated_repository_says_where_to_ask(hub: Hub, token: str) -> None:
    hub.stand_in.gated = True
    sentence = hub.refused(**({"HF_TOKEN": token} if token else {}))
    assert f"ask for access at {hub.stand_in.url}/owner/tales" in sentence
    assert "HF_TOKEN" in sentence


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refuses it (401): a request without a token (HF_TOKEN is not set) may not read it"),
        (403, "refuses it (403): a request without a token (HF_TOKEN is not set) may not read it"),
        (404, "answered 404 Not Found"),
        (418, "answered 418"),
        (200, "does not answer like the hub"),
    ],
)
def test_a_hub_that_does_not_give_it_is_quoted(hub: Hub, status: int, words: str) -> None:
    hub.stand_in.status = status
    assert words in hub.refused()


def test_a_file_that_is_not_there_names_those_that_are(hub: Hub) -> None:
    hub.stand_in.add("owner/tales", "README.md", b"")
    for part in PARTS:
        hub.stand_in.add("owner/tales", part, part.encode())
    sentence = hub.refused("hf:owner/tales/talse.gguf")
    assert f"it has {PARTS[0]}, q8/tales.gguf" in sentence
    assert PARTS[1] not in sentence
    assert "README" not in sentence


def test_many_files_are_not_all_named(hub: Hub) -> None:
    for number in range(30):
        hub.stand_in.add("owner/tales", f"{number}.gguf", b"")
    assert "and 11 more" in hub.refused("hf:owner/tales/x.gguf")


def test_a_repository_without_models_says_so(hub: Hub) -> None:
    hub.stand_in.add("owner/empty", "README.md", b"")
    assert "it has no GGUF file" in hub.refused("hf:owner/empty/x.gguf")


def test_a_revision_that_is_not_there_is_named(hub: Hub) -> None:
    assert "has no branch, tag or commit v9" in hub.refused(f"{NAME}@v9")


def test_without_a_network_the_hub_cannot_be_reached(hub: Hub) -> None:
    sentence = hub.refused(HF_ENDPOINT="http://127.0.0.1:1")
    assert "http://127.0.0.1:1 cannot be reached" in sentence
    assert "cannot be reached" in hub.refused(HF_ENDPOINT="nonsense")


def test_a_connection_that_stays_broken_is_given_up(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stand_in.cuts = [10_000, *[0] * 5]
    assert "cannot be reached" in hub.refused()
    assert len(hub.stand_in.asked("cdn")) == 6


def test_offline_only_the_cache_serves(hub: Hub) -> None:
    sentence = hub.refused(HF_HUB_OFFLINE="1")
    assert "it is not in the cache at main, and HF_HUB_OFFLINE forbids" in sentence
    assert hub.stand_in.requests == []
    hub.start()
    assert hub.start(HF_HUB_OFFLINE="1").returncode == 0


def test_offline_a_file_is_there_though_another_ones_commit_is_newer(
    hub: Hub, model: bytes
) -> None:
    """The cache knows one commit of a branch, that of the file that was fetched last."""
    hub.start()
    hub.stand_in.add("owner/tales", "new.gguf", model + b"\0", SECOND)
    hub.start("hf:owner/tales/new.gguf")
    done = hub.start(HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert f"the file of commit {FIRST} is used instead" in done.stderr
    assert "cannot be reached" in hub.start(HF_ENDPOINT="http://127.0.0.1:1").stderr
    assert "it is not in the cache at v2" in hub.refused(f"{NAME}@v2", HF_HUB_OFFLINE="1")


def test_a_disk_that_is_too_small_is_noticed_before_the_download(hub: Hub) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as small:
        size = shutil.disk_usage(small).free + 10**9
        if size > MOST_OVER_HTTP:
            pytest.skip("/dev/shm has room for any file that is fetched so")
        hub.stand_in.sizes["q8/tales.gguf"] = size
        sentence = hub.refused(HF_HOME=small)
    assert re.search(r"has [\d,]+ bytes free, but [\d,]+ are needed", sentence)
    assert hub.stand_in.asked("cdn") == []


def test_a_file_that_plain_http_does_not_give_names_the_librarys_own_tool(hub: Hub) -> None:
    hub.stand_in.sizes["q8/tales.gguf"] = MOST_OVER_HTTP + 1
    assert "download it with: hf download owner/tales q8/tales.gguf" in hub.refused()


def test_a_file_that_cannot_be_written_is_a_sentence(hub: Hub, model: bytes) -> None:
    """What a quota does is done here by the limit of a file's size."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
    started = f"from server.cli import run; raise SystemExit(run(['--plan', '-m', {NAME!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", limited + started], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, **hub.variables()}, check=False, timeout=40,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith("cannot be written: File too large")
    assert hub.start().returncode == 0
    assert hub.has(NAME, model)


def test_a_home_that_is_a_file_is_a_sentence(hub: Hub) -> None:
    hub.home.write_text("")
    assert "cannot be written: Not a directory" in hub.refused()


def test_a_variable_of_the_library_that_is_no_number_is_a_sentence(hub: Hub) -> None:
    assert "huggingface_hub cannot be used" in hub.refused(HF_HUB_DOWNLOAD_TIMEOUT="soon")


def test_a_terminal_gets_a_bar(hub: Hub, model: bytes) -> None:
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with subprocess.Popen(
        [sys.executable, "-m", "server", "--plan", "-m", NAME],
        cwd=ROOT, env={**os.environ, **hub.variables()}, stdout=subprocess.DEVNULL, stderr=terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        try:
            while data := os.read(screen, 4096):
                shown += data
        except OSError:
            pass  # what a terminal says that is closed at its other end
        finally:
            os.close(screen)
        assert process.wait(30) == 0
    assert re.search(r"tales\.gguf: +100%\|.*188k/188k", shown.decode())


def test_the_library_is_imported_only_where_a_model_is_named_so() -> None:
    script = (
        "import sys; from server.cli import run; run(['--plan']);"
        "print([name for name in sys.modules if name.startswith(('huggingface', 'httpx'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
