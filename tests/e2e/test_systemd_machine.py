"""The service under a real systemd, as scripts/install-service puts it in place, sandbox and all.

Where none can be started in namespaces of its own these tests are skipped, with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from server.config.options import BUNDLED_MODEL
from tests.helpers.documentation import Block, sections_of
from tests.helpers.hub_server import environment, hub_server
from tests.helpers.paths import ROOT
from tests.helpers.systemd_machine import CannotBoot, SystemdMachine

UNIT = "tokenflume.service"
PREFIX = "/opt/tokenflume"
INSTALLING = ("python3 -m venv", "pip install")
"""Commands in whose place `machine` has a program; scripts/check installs the real package."""
PROBE = """
import ctypes, ctypes.util, json, mmap, os, socket
from workers.machine.numa import prefer_node

def refused(call):
    try:
        call()
    except OSError as error:
        return error.strerror
    return None

libc = ctypes.CDLL(None, use_errno=True)

def lock_memory():
    page = mmap.mmap(-1, 2 ** 22)
    if libc.mlock(ctypes.byref(ctypes.c_char.from_buffer(page)), ctypes.c_size_t(2 ** 22)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def call_back():
    number = ctypes.POINTER(ctypes.c_int)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, number, number)
    numbers = (ctypes.c_int * 3)(3, 1, 2)
    libc.qsort(numbers, 3, 4, compare(lambda a, b: a[0] - b[0]))
    assert list(numbers) == [1, 2, 3]

cpus = os.sched_getaffinity(0)
print(json.dumps({
    "sched_setaffinity": refused(lambda: os.sched_setaffinity(0, {min(cpus)})),
    "set_mempolicy": refused(lambda: prefer_node(0)),
    "mlock": refused(lock_memory),
    "callback": refused(call_back),
    "loopback": refused(lambda: socket.create_server(("127.0.0.1", 0)).close()),
    "unix": refused(lambda: socket.socketpair()),
    "state": refused(lambda: open("probe", "w").close()),
    "writable code": refused(
        lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    ),
    "setpriority": refused(lambda: os.setpriority(os.PRIO_PROCESS, 0, 5)),
    "netlink": refused(lambda: socket.socket(socket.AF_NETLINK)),
    "raw socket": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW)),
    "usr": refused(lambda: open("/usr/probe", "w").close()),
    "environment file": refused(lambda: open("/etc/tokenflume.env").close()),
}))
"""
ALLOWED = {"sched_setaffinity", "set_mempolicy", "mlock", "callback", "loopback", "unix", "state"}


@pytest.fixture(scope="module")
def machine() -> Iterator[SystemdMachine]:
    """With tokenflume installed, and this checkout and its Python shown to the sandbox."""
    with ExitStack() as stack:
        try:
            booted = stack.enter_context(SystemdMachine())
        except CannotBoot as reason:
            pytest.skip(str(reason))
        with_python = f"PYTHONPATH={ROOT} exec {sys.executable} -m server"
        booted.write(f"{PREFIX}/bin/tokenflume", f'#!/bin/sh\n{with_python} "$@"\n', 0o755)
        booted.run(sys.executable, str(ROOT / "scripts" / "install-service"))
        seen = f"{ROOT} {sys.prefix} {sys.base_prefix}"
        drop_in(booted, "here", f"ProtectHome=tmpfs\nBindReadOnlyPaths={seen}")
        yield booted


@pytest.fixture
def service(machine: SystemdMachine) -> Iterator[SystemdMachine]:
    """Not started yet, and without the settings of tests before."""
    drop_in(machine, "test", "")
    yield machine
    machine.run("systemctl", "stop", UNIT, check=False)
    machine.run("systemctl", "reset-failed", UNIT, check=False)


def drop_in(machine: SystemdMachine, name: str, lines: str) -> None:
    machine.write(f"/etc/systemd/system/{UNIT}.d/{name}.conf", f"[Service]\n{lines}\n")
    machine.run("systemctl", "daemon-reload")


def configure(machine: SystemdMachine, **variables: str) -> None:
    """The environment file, with any free port."""
    lines = [f"TOKENFLUME_{name.upper()}={value}" for name, value in variables.items()]
    machine.write("/etc/tokenflume.env", "\n".join(["TOKENFLUME_PORT=0", *lines, ""]), 0o600)


def configure_echo(machine: SystemdMachine, **options: float) -> None:
    machine.write("/etc/echo.json", json.dumps(options))
    configure(machine, engine="echo", model="/etc/echo.json", workers="1")


def log(machine: SystemdMachine, *flags: str) -> str:
    return machine.run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager", *flags)


def until_logged(machine: SystemdMachine, text: str) -> None:
    """The signal of a reload is sent when systemctl returns, and soon seen."""
    deadline = time.monotonic() + 20
    while text not in log(machine):
        assert time.monotonic() < deadline, f"{text!r} is not in {log(machine)}"
        time.sleep(0.05)


def start(machine: SystemdMachine) -> httpx.Client:
    """Returns when systemd says that it is ready."""
    machine.run("systemctl", "start", UNIT)
    return httpx.Client(base_url=url_of(machine), timeout=40.0, trust_env=False)


def url_of(machine: SystemdMachine) -> str:
    """Of the service that runs."""
    invocation = machine.show(UNIT)["InvocationID"]
    said = log(machine, f"_SYSTEMD_INVOCATION_ID={invocation}")
    url: str = re.findall(r"listening on (http://\S+)", said)[-1]
    return url


def workers(machine: SystemdMachine) -> list[str]:
    return machine.run("pgrep", "-f", "spawn_main").split()


def test_the_page_about_the_daemon_holds(service: SystemdMachine) -> None:
    configure(service)
    model = service.path("/srv/models/model.gguf")
    model.parent.mkdir()
    shutil.copy(BUNDLED_MODEL, model)
    service.write("/tmp/reader/keys", "alice 0123456789abcdef\n", 0o600)
    service.run("ln", "-s", str(ROOT / "scripts"), "/tmp/reader/scripts")
    install, keys = sections_of(ROOT / "OPERATIONS.md")["As a daemon"]

    def obey(block: Block) -> str:
        commands = [c for c in block.commands if not any(part in c for part in INSTALLING)]
        said = [service.run("bash", "-c", f"cd /tmp/reader && {command}") for command in commands]
        service.until(UNIT, SubState="running")
        return said[-1]

    assert re.search(r'Status: "\d streams, \d waiting, \d workers?"', obey(install))
    obey(keys)
    with httpx.Client(base_url=url_of(service), timeout=40.0, trust_env=False) as client:
        assert status_with(client, "0") == 401
        key = {"authorization": "Bearer 0123456789abcdef"}
        assert client.get("/v1/models", headers=key).json()["data"][0]["id"] == "model"


def test_the_sandbox_lets_through_what_workers_need_and_nothing_else(
    service: SystemdMachine,
) -> None:
    configure(service)
    unit = service.path(f"/etc/systemd/system/{UNIT}").read_text()
    unit = re.sub(r"(?m)^(Type|ExecReload|Watchdog|Restart).*\n", "", unit)
    unit = re.sub(
        r"(?m)^ExecStart=.*", f"Type=oneshot\nExecStart={sys.executable} /etc/probe.py", unit
    )
    service.write("/etc/probe.py", PROBE)
    service.write("/etc/systemd/system/probe.service", unit)
    here = service.path(f"/etc/systemd/system/{UNIT}.d/here.conf").read_text()
    service.write(
        "/etc/systemd/system/probe.service.d/here.conf",
        f"{here}Environment=PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1\n",
    )
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "start", "probe.service")
    said = service.run("journalctl", "-u", "probe.service", "-o", "cat", "--no-pager")
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert {name for name, reason in found.items() if reason is None} == ALLOWED, found


def test_the_real_model_streams_in_the_sandbox_pinned_and_locked(service: SystemdMachine) -> None:
    configure(service, mlock="on")
    with start(service) as client:
        shown = service.show(UNIT)
        assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
        # Where a container may not raise limits, that of locked memory stays what it was.
        assert shown["LimitMEMLOCK"] == "infinity"
        assert re.fullmatch(r"0 streams, 0 waiting, \d+ workers?", shown["StatusText"])
        body = {"prompt": "Once upon a time", "num_predict": 5, "temp": 0, "cache": 7}
        assert client.post("/stream", json=body).text.count("\n") == 5
    for pid in workers(service):
        status = service.path(f"/proc/{pid}/status").read_text()
        values = dict(re.findall(r"(?m)^(\w+):\s*(.*)$", status))
        assert values["Seccomp"] == "2"
        assert values["NoNewPrivs"] == "1"
        assert int(values["CapEff"], 16) == 0
        assert int(values["Uid"].split()[0]) > 60_000
        assert int(values["VmLck"].split()[0]) > 5_000
        assert re.fullmatch(r"\d+", values["Cpus_allowed_list"])
    service.run("systemctl", "stop", UNIT)
    assert service.path("/var/lib/private/tokenflume/prompts/7.prompt").exists()
    assert service.show(UNIT)["Result"] == "success"


def test_ctransformers_streams_in_the_sandbox_too(service: SystemdMachine) -> None:
    configure(service, engine="ctransformers")
    with start(service) as client:
        body = {"prompt": "Once upon a time", "num_predict": 5}
        assert client.post("/stream", json=body).text.count("\n") == 5


@pytest.mark.usefixtures("both_cores")
def test_models_that_the_script_names_are_served(service: SystemdMachine) -> None:
    """A path goes through systemd's quotes and through a shell's."""
    # The machine was booted by a test that had one CPU, which its services inherit.
    drop_in(service, "test", f"CPUAffinity={' '.join(map(str, os.sched_getaffinity(0)))}")
    configure(service)
    model = "/opt/my models/it's \\ $HOME.json"
    service.write(model, json.dumps({"slots": 3}))
    script = str(ROOT / "scripts" / "install-service")
    service.run(sys.executable, script, "-m", f"tale={model}", "-m", model)
    environment = service.path("/etc/tokenflume.env")
    environment.write_text(f"{environment.read_text()}TOKENFLUME_ENGINE=echo\n")
    with start(service) as client:
        models = client.get("/ready").json()["models"]
        assert [one["name"] for one in models] == ["tale", "it's \\ $HOME"]


def test_a_model_of_the_hub_is_fetched_into_the_service_s_own_cache(
    service: SystemdMachine, llama_gguf: Path
) -> None:
    with hub_server() as hub:
        hub.add("owner/tales", "tales.gguf", llama_gguf.read_bytes())
        variables = environment(hub, Path("/unused"))
        del variables["HF_HOME"]
        lines = [f"{name}={value}" for name, value in variables.items()]
        configure(service, model="hf:owner/tales/tales.gguf", num_ctx_tokens="64")
        file = service.path("/etc/tokenflume.env")
        file.write_text("\n".join([file.read_text(), *lines, ""]))
        start(service).close()
    blobs = service.path("/var/cache/private/tokenflume/huggingface/hub/models--owner--tales/blobs")
    assert [blob.stat().st_size for blob in blobs.iterdir()] == [llama_gguf.stat().st_size]


def test_the_journal_has_priorities_and_no_times_of_ours(service: SystemdMachine) -> None:
    configure_echo(service)
    start(service).close()
    (worker,) = workers(service)
    service.run("kill", "-9", worker)
    until_logged(service, "worker 0 was ended by SIGKILL")
    shown = service.until(UNIT, StatusText="0 streams, 0 waiting, 1 worker")
    assert shown["NRestarts"] == "0"
    errors = log(service, "-p", "err")
    assert "tokenflume.pool: worker 0 was ended by SIGKILL" in errors
    assert "listening on" not in errors
    assert "listening on" in log(service, "-p", "info")
    assert not re.search(r"\d\d:\d\d:\d\d,\d\d\d|<\d>", log(service))


def test_a_start_and_a_drain_may_take_longer_than_their_timeouts(service: SystemdMachine) -> None:
    drop_in(service, "test", "TimeoutStartSec=2\nTimeoutStopSec=2")
    configure_echo(service, load_s=4.0, step_s=0.05)
    with start(service) as client:
        body = {"prompt": "x", "num_predict": 80, "ignore_eos": True}
        with client.stream("POST", "/stream", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            stopping = threading.Thread(target=service.run, args=("systemctl", "stop", UNIT))
            stopping.start()
            assert len(list(lines)) == 79
        stopping.join()
    shown = service.show(UNIT)
    assert (shown["Result"], shown["ExecMainStatus"]) == ("success", "0")


def test_systemctl_reload_reads_the_prompts_again(service: SystemdMachine) -> None:
    service.write("/etc/prompts.toml", 'short = "Be brief."')
    configure(service, engine="echo", prompts="/etc/prompts.toml")
    start(service).close()
    before = service.show(UNIT)["MainPID"]
    service.run("systemctl", "reload", UNIT)
    until_logged(service, "reloaded the system prompts of /etc/prompts.toml")
    assert service.until(UNIT, SubState="running")["MainPID"] == before


def test_keys_are_the_service_s_own_file_and_read_again(service: SystemdMachine) -> None:
    configure(service, engine="echo")
    start(service).close()  # which makes its folder
    service.run("systemctl", "stop", UNIT)
    give_keys(service, "ann 0123456789abcdef\n")
    configure(service, engine="echo", api_key_file="/var/lib/tokenflume/keys")
    with start(service) as client:
        assert status_with(client, "0123456789abcdef") == 200
        give_keys(service, "ben fedcba9876543210\n")
        service.run("systemctl", "reload", UNIT)
        until_logged(service, "reloaded the keys of /var/lib/tokenflume/keys")
        assert status_with(client, "0123456789abcdef") == 401
        assert status_with(client, "fedcba9876543210") == 200


def give_keys(machine: SystemdMachine, keys: str) -> None:
    """As OPERATIONS.md says."""
    folder = "/var/lib/private/tokenflume"
    machine.write("/etc/keys", keys, 0o600)
    machine.run("install", "-m", "600", "/etc/keys", f"{folder}/keys")
    machine.run("chown", f"--reference={folder}", f"{folder}/keys")


def status_with(client: httpx.Client, key: str) -> int:
    return client.get("/ready", headers={"authorization": f"Bearer {key}"}).status_code


def test_a_front_that_hangs_is_ended_and_started_again(service: SystemdMachine) -> None:
    drop_in(service, "test", "WatchdogSec=2\nTimeoutAbortSec=1")
    configure_echo(service)
    start(service).close()
    service.run("kill", "-STOP", service.show(UNIT)["MainPID"])
    service.until(UNIT, SubState="running", NRestarts="1")
    assert "Watchdog timeout" in log(service)


def test_workers_that_die_again_and_again_end_in_a_restart(service: SystemdMachine) -> None:
    drop_in(service, "test", "WatchdogSec=8\nTimeoutAbortSec=1")
    configure_echo(service, dies_after_s=0.6)
    start(service).close()
    service.until(
        UNIT,
        StatusText="worker 0 is given up: 5 processes died in a row without completing a request",
    )
    configure_echo(service)
    service.until(UNIT, SubState="running", NRestarts="1")


@pytest.mark.parametrize(
    ("variables", "status"), [({"model": "/none.gguf"}, "3"), ({"queue": "many"}, "2")]
)
def test_what_cannot_work_is_not_tried_again(
    service: SystemdMachine, variables: dict[str, str], status: str
) -> None:
    configure(service, **variables)
    service.run("systemctl", "start", UNIT, check=False)
    shown = service.show(UNIT)
    assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", status)
    assert shown["NRestarts"] == "0"


def test_uninstalling_stops_it_and_leaves_what_it_saved(machine: SystemdMachine) -> None:
    """The last test of the machine."""
    configure_echo(machine)
    machine.run("systemctl", "enable", UNIT)
    start(machine).close()
    said = machine.run(sys.executable, str(ROOT / "scripts/install-service"), "--uninstall")
    assert "/var/lib/private/tokenflume" in said
    assert machine.show(UNIT)["ActiveState"] == "inactive"
    assert not machine.path(f"/etc/systemd/system/{UNIT}").exists()
    assert not machine.path(f"/etc/systemd/system/multi-user.target.wants/{UNIT}").is_symlink()
    with pytest.raises(AssertionError):
        workers(machine)
