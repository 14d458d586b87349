"""Life under a service manager: what it is told, by the real server, on a real notify socket.

And what systemd says of the unit, and of the service that scripts/install-service puts in place.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.notify_socket import Fields, NotifySocket, notify_socket
from tests.helpers.paths import ROOT
from tests.helpers.running import START_S, RunningServer, run_to_its_end
from tests.helpers.support import echo_options

INSTALL = ROOT / "scripts" / "install-service"
WATCHDOG_S = 1.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with notify_socket(f"{tmp_path}/notify") as made:
        yield made


def watched(manager: NotifySocket, seconds: float = WATCHDOG_S) -> dict[str, str]:
    """The environment of a service that the manager watches."""
    return {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(seconds * 1e6))}


def echo(folder: Path, *flags: str, **options: object) -> list[str]:
    return ["--engine", "echo", "-m", str(echo_options(folder, **options)), *flags]


def test_it_is_ready_when_the_model_is_and_asks_for_time_until_then(
    manager: NotifySocket, tmp_path: Path
) -> None:
    flags = echo(tmp_path, load_s=2.0)
    with RunningServer(*flags, wait_ready=False, **watched(manager)) as running:
        manager.until_status("loading 0 %")
        assert running.client.get("/ready").status_code == 503
        ready = manager.until_ready()
        assert running.client.get("/ready").status_code == 200
        assert ready["STATUS"] == "0 streams, 0 waiting, 1 worker"
        assert [message for message in manager.heard if "READY" in message] == [ready]
        assert any("EXTEND_TIMEOUT_USEC" in message for message in manager.heard)


def test_a_real_model_says_how_much_of_it_is_loaded(
    manager: NotifySocket, llama_gguf: Path
) -> None:
    with RunningServer("-m", str(llama_gguf), wait_ready=False, **watched(manager)):
        assert re.search(r"loading \d+ %", manager.until_status("loading")["STATUS"])
        manager.until_ready()
        assert manager.is_fed_within(WATCHDOG_S)


def test_an_abstract_socket_is_told_too() -> None:
    with (
        notify_socket(f"@tokenflume-test-{os.getpid()}") as manager,
        RunningServer("--engine", "echo", **watched(manager)),
    ):
        manager.until_ready()


@pytest.mark.usefixtures("both_cores")
def test_the_status_counts_streams_waiting_requests_and_workers(
    manager: NotifySocket, tmp_path: Path
) -> None:
    flags = echo(tmp_path, "--workers", "2", "--slots", "1", step_s=0.02)
    with RunningServer(*flags, wait_ready=False, **watched(manager)) as running:
        manager.until_status("0 streams, 0 waiting, 2 workers")
        body = {"prompt": "x", "num_predict": 2000, "ignore_eos": True}
        with running.stream(**body), running.stream(**body):
            manager.until_status("2 streams, 0 waiting, 2 workers")
        manager.until_status("0 streams, 0 waiting, 2 workers")


@pytest.mark.usefixtures("both_cores")
def test_the_status_says_that_a_worker_died(manager: NotifySocket, tmp_path: Path) -> None:
    flags = echo(tmp_path, "--workers", "2", load_s=1.5)
    with RunningServer(*flags, wait_ready=False, **watched(manager)) as running:
        manager.until_status("2 workers")
        running.workers()[0].kill()
        status = manager.until_status("was ended by SIGKILL")["STATUS"]
        assert status.startswith("0 streams, 0 waiting, 1 of 2 workers; worker ")
        assert status.endswith("it is being replaced")
        assert manager.is_fed_within(WATCHDOG_S)
        manager.until_status("0 streams, 0 waiting, 2 workers")


def test_no_child_inherits_the_manager_s_socket(manager: NotifySocket) -> None:
    with RunningServer("--engine", "echo", **watched(manager)) as running:
        for child in psutil.Process(running.process.pid).children(recursive=True):
            names = child.environ()
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & names.keys()


def test_the_watchdog_is_fed_at_half_of_its_interval(manager: NotifySocket) -> None:
    with RunningServer("--engine", "echo", **watched(manager)):
        manager.until_ready()
        assert manager.is_fed_within(WATCHDOG_S)
        started = time.monotonic()
        for _ in range(4):
            assert manager.is_fed_within(WATCHDOG_S)
        assert 3 * WATCHDOG_S / 2 < time.monotonic() - started < 4 * WATCHDOG_S


def test_another_process_s_watchdog_is_left_alone(manager: NotifySocket) -> None:
    with RunningServer("--engine", "echo", **watched(manager), WATCHDOG_PID="1"):
        manager.until_ready()
        assert not manager.is_fed_within(2 * WATCHDOG_S)


@pytest.mark.parametrize("how", ["[[stop]]", "[[hang]]", "[[hang-gil]]"])
def test_the_watchdog_is_not_fed_while_the_only_worker_stands_still(
    manager: NotifySocket, how: str
) -> None:
    """But again once the worker that took so long was replaced."""
    flags = ("--engine", "echo", "--workers", "1", "--progress-timeout", "6")
    with RunningServer(*flags, **watched(manager)) as running:
        manager.until_ready()
        assert manager.is_fed_within(WATCHDOG_S)
        with running.stream("application/x-ndjson", prompt=f"x{how}", num_predict=99) as response:
            manager.until_not_fed(2 * WATCHDOG_S)
            assert "worker_died" in list(response.iter_lines())[-1]
        running.wait_for_log("made no progress for 6 s")
        assert manager.is_fed_within(START_S)


@pytest.mark.usefixtures("both_cores")
def test_the_watchdog_is_fed_while_another_worker_gets_on(manager: NotifySocket) -> None:
    flags = ("--engine", "echo", "--workers", "2", "--progress-timeout", "60")
    with RunningServer(*flags, **watched(manager)) as running:
        running.until(lambda state: bool(state["workers"] == 2))
        running.workers()[0].suspend()
        manager.until_ready()
        for _ in range(6):
            assert manager.is_fed_within(WATCHDOG_S)


def test_the_watchdog_is_not_fed_while_the_front_stands_still(manager: NotifySocket) -> None:
    with RunningServer("--engine", "echo", **watched(manager)) as running:
        manager.until_ready()
        running.process.send_signal(signal.SIGSTOP)
        manager.until_not_fed(2 * WATCHDOG_S)
        running.process.send_signal(signal.SIGCONT)
        assert manager.is_fed_within(START_S)


def test_when_all_workers_are_given_up_the_watchdog_starves(
    manager: NotifySocket, tmp_path: Path
) -> None:
    flags = echo(tmp_path, "--workers", "1", dies_after_s=0.1)
    with RunningServer(*flags, wait_ready=False, **watched(manager)):
        manager.until_status(
            "worker 0 is given up: 5 processes died in a row without completing a request"
        )
        assert not manager.is_fed_within(3 * WATCHDOG_S)


def test_on_sigterm_it_says_that_it_drains_and_asks_for_time(
    manager: NotifySocket, tmp_path: Path
) -> None:
    flags = echo(tmp_path, step_s=0.03)
    with RunningServer(*flags, **watched(manager)) as running:
        with running.stream(prompt="x" * 60, num_predict=99) as response:
            lines = response.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            stopping = manager.until(lambda message: "STOPPING" in message)
            assert stopping["STATUS"] == "draining: 1 stream, 0 waiting"
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 10_000_000
            manager.until(lambda message: set(message) == {"EXTEND_TIMEOUT_USEC"})
            assert len(list(lines)) == 59
        assert running.process.wait(timeout=10) == 0


def test_a_model_that_does_not_load_is_said_before_the_end(
    manager: NotifySocket, tmp_path: Path
) -> None:
    flags = echo(tmp_path, load_error="the model is upside down")
    with RunningServer(*flags, wait_ready=False, **watched(manager)) as running:
        manager.until_status("the model is upside down")
        assert running.process.wait(timeout=20) == 3
        assert not any("READY" in message for message in manager.heard)


def test_a_folder_of_models_that_is_gone_is_said_without_a_traceback(
    manager: NotifySocket, tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("no folder")
    ended = run_to_its_end("--models-dir", str(tmp_path / "models"), **watched(manager))
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr


def reloaded(manager: NotifySocket, running: RunningServer) -> Fields:
    """Send SIGHUP; the message that says that reloading is done."""
    running.process.send_signal(signal.SIGHUP)
    reloading = manager.until(lambda message: "RELOADING" in message)
    assert abs(int(reloading["MONOTONIC_USEC"]) / 1e6 - time.monotonic()) < START_S
    return manager.until_ready()


def test_sighup_reads_the_system_prompts_again(manager: NotifySocket, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('short = "Be brief."')
    flags = ("--engine", "echo", "--prompts", str(prompts))
    with RunningServer(*flags, **watched(manager)) as running:
        manager.until_ready()
        prompts.write_text("short = ")
        assert "reloading failed: the system prompts of" in reloaded(manager, running)["STATUS"]
        running.wait_for_log("is not valid TOML.*the old ones stay in use")
        prompts.write_text('short = "Be briefer."')
        assert reloaded(manager, running)["STATUS"] == "0 streams, 0 waiting, 1 worker"
        running.wait_for_log("reloaded the system prompts of")
        assert running.post(prompt="still here").status_code == 200


def test_sighup_reads_the_api_keys_again(manager: NotifySocket, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann 0123456789abcdef\n")
    with RunningServer(
        "--engine", "echo", "--api-key-file", str(keys), wait_ready=False, **watched(manager)
    ) as running:
        manager.until_ready()

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return running.client.get("/ready", headers=headers).status_code

        assert status("0123456789abcdef") == 200
        keys.write_text("ben fedcba9876543210\n")
        reloaded(manager, running)
        assert (status("0123456789abcdef"), status("fedcba9876543210")) == (401, 200)


def test_sighup_before_the_model_is_loaded_does_not_say_ready(
    manager: NotifySocket, tmp_path: Path
) -> None:
    flags = echo(tmp_path, load_s=2.0)
    with RunningServer(*flags, wait_ready=False, **watched(manager)) as running:
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_log("SIGHUP")
        assert running.client.get("/ready").status_code == 503
        assert not any("READY" in message for message in manager.heard)
        manager.until_ready()
        assert not any("RELOADING" in message for message in manager.heard)


def test_sighup_without_a_manager_reloads_and_ends_nothing() -> None:
    with RunningServer("--engine", "echo") as running:
        workers = running.workers()
        for process in (running.process, *workers):
            process.send_signal(signal.SIGHUP)
        running.wait_for_log("SIGHUP: there is nothing to reload")
        assert running.post(prompt="still here").status_code == 200
        assert running.workers() == workers


def test_a_terminal_that_is_closed_ends_the_server() -> None:
    """SIGHUP means that, too; it comes from the kernel, and again from a shell."""
    terminal, ours = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "-P", "0", "--engine", "echo"],
        cwd=ROOT, stdin=ours, stdout=ours, stderr=ours,
    )  # fmt: skip
    os.close(ours)
    try:
        log = b""
        while b"Ctrl-C stops the server" not in log:
            log += os.read(terminal, 4096)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


# The unit, as the script writes it.


def installed(root: Path, *flags: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(INSTALL), "--root", str(root), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


def unit_of(root: Path) -> Path:
    return root / "etc/systemd/system/tokenflume.service"


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("systemd-analyze"), "scripts/test installs the package systemd, as root"
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """What looks like a place where tokenflume is installed."""
    program = tmp_path / "prefix/bin/tokenflume"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path / "prefix"


def test_the_unit_is_what_systemd_understands(tmp_path: Path, prefix: Path) -> None:
    installed(tmp_path, "--prefix", str(prefix))
    said = analyze("verify", str(unit_of(tmp_path)))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert f"ExecStart={prefix}/bin/tokenflume\n" in unit_of(tmp_path).read_text()


def test_the_unit_is_exposed_at_2_0_or_less(tmp_path: Path, prefix: Path) -> None:
    installed(tmp_path, "--prefix", str(prefix))
    said = analyze(
        "security", "--offline=true", "--no-pager", "--threshold=20", str(unit_of(tmp_path))
    )
    assert said.returncode == 0, said.stdout
    found = re.search(r"Overall exposure level for tokenflume.service: ([\d.]+)", said.stdout)
    assert found
    assert float(found[1]) <= 2.0


def test_the_kind_of_the_unit_is_one_that_this_systemd_knows(tmp_path: Path, prefix: Path) -> None:
    installed(tmp_path, "--prefix", str(prefix))
    found = re.match(r"systemd (\d+)", analyze("--version").stdout)
    assert found
    text = unit_of(tmp_path).read_text()
    assert ("\nType=notify-reload\n" in text) == (int(found[1]) >= 253)
    assert ("\nExecReload=" in text) == (int(found[1]) < 253)


def test_installing_again_changes_nothing(tmp_path: Path, prefix: Path) -> None:
    flags = ("--prefix", str(prefix), "--model", "/srv/models/a b.gguf")
    installed(tmp_path, *flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "etc").rglob("*")}
    assert installed(tmp_path, *flags).stdout.count("is up to date") == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "etc").rglob("*")} == before


def test_models_go_into_the_environment_file_and_all_else_in_it_stays(
    tmp_path: Path, prefix: Path
) -> None:
    file = tmp_path / "etc/tokenflume.env"
    flags = ("--prefix", str(prefix))
    installed(tmp_path, *flags)
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("TOKENFLUME_PORT=9999\nTOKENFLUME_MODEL=/old.gguf\n")
    installed(tmp_path, *flags, "-m", "/srv/it's.gguf", "-m", "big=hf:o/r/f.gguf")
    words = r"""TOKENFLUME_MODEL="'/srv/it'\"'\"'s.gguf' big=hf:o/r/f.gguf" """.strip()
    assert file.read_text() == f"TOKENFLUME_PORT=9999\n{words}\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--prefix", "relative"), "--prefix must be an absolute path"),
        (("--prefix", "/opt/100%"), "--prefix must be an absolute path"),
        (("--model", "relative.gguf"), "--model must have an absolute path"),
        (("--model", "name=relative.gguf"), "--model must have an absolute path"),
        (("--model", "/a\nb.gguf"), "--model must have an absolute path"),
    ],
)
def test_what_a_unit_cannot_say_is_refused(
    tmp_path: Path, flags: tuple[str, ...], reason: str
) -> None:
    ended = installed(tmp_path, *flags, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"install-service: {reason}")
    assert not (tmp_path / "etc").exists()


def test_uninstalling_removes_the_unit_and_says_what_stays(tmp_path: Path, prefix: Path) -> None:
    installed(tmp_path, "--prefix", str(prefix))
    said = installed(tmp_path, "--uninstall").stdout
    assert "/etc/tokenflume.env" in said
    assert not unit_of(tmp_path).exists()
    assert (tmp_path / "etc/tokenflume.env").exists()
    assert installed(tmp_path, "--uninstall").stdout == "the service is not installed\n"
