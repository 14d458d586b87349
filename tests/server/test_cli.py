"""The command line: what is wrong ends it with its status and one sentence."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.cli import run
from server.config.options import BUNDLED_MODEL
from server.config.output import exit_statuses
from server.config.settings import build_settings
from server.exit_status import ExitStatus
from server.http.listener import CannotListen, listen, watch_clients
from server.version import VERSION
from shared.errors import ConfigurationError
from shared.sampling import SamplingParams
from shared.settings import Settings
from tests.helpers.options import read_options
from tests.helpers.paths import ROOT
from workers.machine.cores import Core, Machine

TIMEOUT_S = 30.0
GGML_MAGICS = [b"lmgg", b"tjgg", b"fmgg", b"algg"]


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TOKENFLUME_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """The command line sets up logging for the whole process; put it back."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "uvicorn.error")}
    root.handlers = []
    yield
    root.setLevel(level)
    root.handlers = handlers
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program as a user runs it, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        timeout=TIMEOUT_S,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def sentence(captured: tuple[str, str]) -> str:
    """The one sentence on standard error, with nothing on standard output."""
    out, err = captured
    (line,) = err.splitlines()
    assert err.endswith("\n")
    assert out == ""
    assert line.startswith("tokenflume: ")
    return line.removeprefix("tokenflume: ")


def settings_of(*arguments: str) -> Settings:
    return build_settings(read_options(list(arguments), {}))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- it says something and ends


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """setup.cfg takes it from the same place."""
    assert run(["--version"]) == ExitStatus.OK

    assert capsys.readouterr() == (f"tokenflume {VERSION}\n", "")
    setup = (ROOT / "setup.cfg").read_text()
    assert "version = attr: server.version.VERSION" in setup


def test_the_version_is_asked_for_in_a_checkout_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m server` runs there, and this one flag ended it with a traceback."""
    monkeypatch.setattr(sys, "path", [])

    assert run(["--version"]) == ExitStatus.OK

    assert capsys.readouterr().out.startswith("tokenflume ")


def test_the_version_needs_no_model_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--version", "--model", str(tmp_path / "missing")]) == ExitStatus.OK

    assert capsys.readouterr().err == ""


def test_the_plan_is_printed_and_nothing_is_started(
    taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--plan", "--engine", "echo", "--workers", "1", "--num-threads", "1"]

    assert run([*arguments, "--port", str(taken_port)]) == ExitStatus.OK

    out, err = capsys.readouterr()
    assert err == ""
    assert "1 worker, 1 thread" in out
    assert out.count("worker 0 ") == 1


def test_more_threads_than_cpus_end_with_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["--plan", "--engine", "echo", "--num-threads", "100000"]) == ExitStatus.CONFIGURATION
    )

    assert "100000 threads" in sentence(capsys.readouterr())


# ---------------------------------------------------------------- status 3: the model


BAD_MODELS = {
    "missing": ("no such file or directory", None),
    "missing/model.gguf": ("no such file or directory", None),
    "x" * 300: ("file name too long", None),
    "empty": ("is empty", b""),
    "text": ("is neither a GGUF nor a GGML file", b"Once upon a time"),
    "picture": ("is neither a GGUF nor a GGML file", b"\x89PNG\r\n\x1a\n"),
    "lower": ("is neither a GGUF nor a GGML file", b"gguf\x03\0\0\0"),
    "short": ("is neither a GGUF nor a GGML file", b"GGU"),
    "a byte": ("is neither a GGUF nor a GGML file", b"\0"),
}


@pytest.mark.parametrize("engine", ["auto", "llama_cpp", "ctransformers"])
@pytest.mark.parametrize("name", BAD_MODELS, ids=lambda name: name[:20])
def test_a_path_that_is_no_model_ends_with_status_3_and_one_sentence(
    name: str, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason, content = BAD_MODELS[name]
    path = tmp_path / name if content is None else written(tmp_path / name, content)

    assert run(["--model", str(path), "--engine", engine]) == ExitStatus.CONFIGURATION

    said = sentence(capsys.readouterr())
    assert said.startswith(str(path))
    assert said.endswith(reason)


@pytest.mark.parametrize("engine", ["auto", "ctransformers"])
def test_a_directory_is_no_model(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--model", str(tmp_path), "--engine", engine]) == ExitStatus.CONFIGURATION

    assert sentence(capsys.readouterr()) == f"{tmp_path} cannot be read: is a directory"


@pytest.mark.parametrize("engine", ["auto", "ctransformers"])
def test_a_link_to_itself_is_no_model(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an engine named, the path was resolved first, which raised a RuntimeError."""
    path = tmp_path / "link"
    path.symlink_to(path)

    assert run(["--model", str(path), "--engine", engine]) == ExitStatus.CONFIGURATION

    assert "symbolic links" in sentence(capsys.readouterr())


@pytest.mark.parametrize("engine", ["auto", "ctransformers"])
@pytest.mark.parametrize("magic", GGML_MAGICS, ids=repr)
def test_a_ggml_file_without_a_model_type_ends_with_status_3_and_says_which_flag_is_missing(
    magic: bytes, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "model.bin", magic + bytes(28))

    assert run(["--model", str(path), "--engine", engine]) == ExitStatus.CONFIGURATION

    said = sentence(capsys.readouterr())
    assert said.startswith(f"{path} is a GGML file")
    assert "--model-type" in said


@pytest.mark.parametrize("magic", GGML_MAGICS, ids=repr)
def test_a_ggml_file_with_its_model_type_is_for_ctransformers(magic: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "model.bin", magic + bytes(28))

    model = settings_of("--model", str(path), "--model-type", "gpt2").models[0].model

    assert (model.engine, model.model_type, model.path) == ("ctransformers", "gpt2", path)


def test_a_gguf_file_needs_no_model_type(tmp_path: Path) -> None:
    path = written(tmp_path / "model", b"GGUF\x03\0\0\0")

    model = settings_of("--model", str(path)).models[0].model

    assert (model.engine, model.model_type, model.path) == ("llama_cpp", None, path)


def test_the_program_itself_ends_with_status_3_for_a_missing_model(tmp_path: Path) -> None:
    ended = program("--model", str(tmp_path / "missing.gguf"))

    assert ended.returncode == ExitStatus.CONFIGURATION == 3
    assert "missing.gguf cannot be read" in sentence((ended.stdout, ended.stderr))


# ---------------------------------------------------------------- status 4: the address


def test_the_program_itself_ends_with_status_4_for_a_port_in_use(taken_port: int) -> None:
    ended = program("--engine", "echo", "--port", str(taken_port))

    assert ended.returncode == ExitStatus.CANNOT_LISTEN == 4
    said = sentence((ended.stdout, ended.stderr))
    assert said.lower() == f"cannot listen on 127.0.0.1:{taken_port}: address already in use"


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "", "a..b", ".", "x" * 64], ids=["not-ours", "empty", "..", ".", "long"]
)
def test_a_host_that_is_none_of_ours_ends_with_status_4_and_one_sentence(host: str) -> None:
    """What no name of a host can look like raises a UnicodeError, which is no OSError."""
    ended = program("--engine", "echo", "--host", host, "--port", "0")

    assert ended.returncode == ExitStatus.CANNOT_LISTEN
    assert sentence((ended.stdout, ended.stderr)).startswith(f"cannot listen on {host}:0: ")


@pytest.mark.usefixtures("own_logging")
def test_a_host_without_an_address_ends_with_status_4_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_such_name(*_: object, **__: object) -> None:  # a real one asks the network
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)

    assert run(["--engine", "echo", "--host", "nowhere"]) == ExitStatus.CANNOT_LISTEN

    said = sentence(capsys.readouterr())
    assert said == "cannot listen on nowhere:8080: Name or service not known"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
def test_a_socket_listens_on_any_free_port(host: str) -> None:
    try:
        listener = listen(host, 0)
    except CannotListen:
        if ":" in host:
            pytest.skip("no IPv6 here")
        raise
    with listener:
        port = listener.getsockname()[1]
        assert port > 0
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        socket.create_connection((target, port), timeout=TIMEOUT_S).close()


def test_a_port_is_free_again_at_once_after_its_connections() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()

    listen("127.0.0.1", port).close()


def test_accepted_connections_have_the_limits_of_their_listener() -> None:
    with listen("127.0.0.1", 0) as listener:
        watch_clients(listener, 1.5)
        with socket.create_connection(listener.getsockname(), timeout=TIMEOUT_S):
            accepted, _ = listener.accept()
            with accepted:
                tcp = socket.IPPROTO_TCP
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert accepted.getsockopt(tcp, socket.TCP_KEEPIDLE) == 10
                assert accepted.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 3500
                assert accepted.getsockopt(tcp, socket.TCP_NOTSENT_LOWAT) == 128 * 1024


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_second_server_does_not_share_the_port_of_the_first() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(CannotListen, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_a_port_in_use_leaves_no_socket_open(taken_port: int) -> None:
    before = open_descriptors()

    with pytest.raises(CannotListen, match="in use"):
        listen("127.0.0.1", taken_port)

    assert open_descriptors() == before


# ---------------------------------------------------------------- status 3: other errors of files


IN_A_DELETED_FOLDER = f"""
import os, sys, tempfile
sys.path.insert(0, {str(ROOT)!r})
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
from server.cli import run
raise SystemExit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "model.gguf", "--port", "0"],
        ["--engine", "echo", "--cache-dir", "prompts", "--port", "0"],
        ["tune", "-m", "model.gguf"],
    ],
)
def test_an_error_of_a_file_is_not_reported_as_one_of_the_address(arguments: list[str]) -> None:
    """In a folder that was deleted the server "cannot listen", and tune ended with a traceback."""
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_DELETED_FOLDER, *arguments],
        timeout=TIMEOUT_S, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == ExitStatus.CONFIGURATION
    said = sentence((ended.stdout, ended.stderr))
    assert said == "the program cannot start: No such file or directory"


@pytest.mark.usefixtures("own_logging")
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none"
    monkeypatch.setattr("server.config.settings.read_machine", path.read_text)

    assert run(["--engine", "echo", "--port", "0"]) == ExitStatus.CONFIGURATION

    assert sentence(capsys.readouterr()) == f"{path} cannot be used: No such file or directory"


@pytest.mark.usefixtures("own_logging")
def test_an_error_while_clients_are_watched_is_one_of_the_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr("server.http.listener.watch_clients", refuse)
    before = open_descriptors()

    assert run(["--engine", "echo", "--port", "0"]) == ExitStatus.CANNOT_LISTEN

    said = sentence(capsys.readouterr())
    assert said == "cannot listen on 127.0.0.1:0: Protocol not available"
    assert open_descriptors() == before


# ---------------------------------------------------------------- statuses 2 and 0


def test_a_bad_flag_ends_with_status_2_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--port", "http"])

    assert ended.value.code == 2
    assert "--port" in capsys.readouterr().err.splitlines()[-1]


def test_the_environment_of_the_process_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENFLUME_TOP_P", "2")

    with pytest.raises(SystemExit) as ended:
        run(["--plan"])

    assert ended.value.code == 2
    assert "TOKENFLUME_TOP_P" in capsys.readouterr().err.splitlines()[-1]


def test_every_status_that_a_sentence_of_help_explains_is_the_one_used() -> None:
    lines = exit_statuses().splitlines()
    explained = {line.split("  ")[1] for line in lines if line.startswith("  ")}

    assert explained == {str(int(status)) for status in ExitStatus if status < 100}
    assert explained == {"0", "1", "2", "3", "4", "5"}


# ---------------------------------------------------------------- options to settings


def test_options_reach_the_settings_that_they_are_for() -> None:
    settings = settings_of(
        *("--engine", "echo", "--num-ctx-tokens", "99", "--batch-size", "7", "--kv-type", "q8_0"),
        *("--model-type", "gpt2", "--host", "::1", "--port", "81", "--queue", "5"),
        *("--drain-timeout", "1.5", "--load-timeout", "2.5", "--progress-timeout", "3.5"),
        *("--temp", "0.1", "--top-k", "2", "--top-p", "0.3", "--repeat-penalty", "1.4"),
        *("--repeat-last-n", "6", "--log-level", "error", "--workers", "1", "--num-threads", "1"),
        *("--slots", "3", "--max-stall", "80", "--mlock", "--repack", "off"),
        *("--send-timeout", "4.5", "--restart-wait", "5.5", "--max-deaths", "6"),
    )

    assert (settings.host, settings.port, settings.log_level) == ("::1", 81, "error")
    assert settings.drain_timeout_s == 1.5
    assert settings.models[0].pool.queue == 5
    assert settings.models[0].pool.load_timeout_s == 2.5
    assert settings.models[0].pool.progress_timeout_s == 3.5
    assert settings.send_timeout_s == 4.5
    restart = settings.models[0].pool.restart
    assert (restart.longest_wait_s, restart.max_deaths) == (5.5, 6)
    assert settings.sampling == SamplingParams(
        temp=0.1, top_k=2, top_p=0.3, repeat_penalty=1.4, repeat_last_n=6
    )
    (worker,) = settings.models[0].pool.workers
    assert (worker.index, len(worker.cpus), worker.log_level) == (0, 1, "error")
    assert (worker.model.context, worker.model.batch, worker.model.kv_type) == (99, 7, "q8_0")
    assert (worker.model.engine, worker.model.model_type) == ("echo", "gpt2")
    assert (worker.model.slots, worker.model.mlock, worker.model.repack) == (3, True, False)
    assert worker.max_stall_s == pytest.approx(0.08)


def test_without_options_memory_is_not_locked_and_the_engine_chooses_its_slots() -> None:
    worker = settings_of().models[0].pool.workers[0]

    assert (worker.model.slots, worker.model.mlock) == (None, False)
    assert worker.max_stall_s == 0.15


def repacked(workers: int, *arguments: str) -> list[bool]:
    """Whether each worker rearranges its weights."""
    settings = settings_of("--workers", str(workers), "--num-threads", str(workers), *arguments)
    return [worker.model.repack for worker in settings.models[0].pool.workers]


def test_a_single_worker_rearranges_its_weights_unless_it_must_not() -> None:
    assert repacked(1) == [True]
    assert repacked(1, "--repack", "off") == [False]


@pytest.mark.usefixtures("both_cores")
def test_workers_that_could_share_the_weights_rearrange_them_only_if_they_must() -> None:
    assert repacked(2) == [False, False]
    assert repacked(2, "--repack") == [True, True]


def kv_memory(*arguments: str) -> int | None:
    return settings_of("--num-threads", "1", *arguments).models[0].model.kv_memory


def test_half_of_what_the_weights_leave_is_for_keys_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "model.gguf", b"GGUF" + bytes(996))
    monkeypatch.setattr("server.config.specs.available_memory", lambda: 9000)

    assert kv_memory("--model", str(path)) == 4000


@pytest.mark.usefixtures("both_cores")
def test_workers_share_the_memory_for_keys_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "model.gguf", b"GGUF" + bytes(996))
    monkeypatch.setattr("server.config.specs.available_memory", lambda: 9000)

    assert kv_memory("--model", str(path), "--num-threads", "2", "--workers", "2") == 2000


def test_a_model_larger_than_the_memory_leaves_none_for_keys_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "model.gguf", b"GGUF" + bytes(996))
    monkeypatch.setattr("server.config.specs.available_memory", lambda: 999)

    assert kv_memory("--model", str(path)) == 0


def test_where_memory_is_unknown_or_there_are_no_weights_nothing_is_said_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kv_memory() is not None
    assert kv_memory("--engine", "echo") is None
    monkeypatch.setattr("server.config.specs.available_memory", lambda: None)
    assert kv_memory() is None


def test_options_of_the_echo_engine_that_are_missing_are_no_matter_of_the_address(
    tmp_path: Path,
) -> None:
    """Looking at the size of that "model" ended as "cannot listen", with status 4."""
    ended = program("--engine", "echo", "--model", str(tmp_path / "none.json"), "--port", "0")

    assert ended.returncode == ExitStatus.CONFIGURATION
    assert "none.json does not hold options of the echo engine" in ended.stderr.splitlines()[-1]


def test_a_worker_takes_memory_from_the_node_of_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = tuple(Core((cpu,), package=0, node=cpu, l3=cpu, performance=0) for cpu in range(2))
    machine = Machine(cores, online=2, allowed=2, quota=None, quota_source="no cgroup found")
    monkeypatch.setattr("server.config.settings.read_machine", lambda: machine)

    apart = settings_of("--workers", "2").models[0].pool.workers
    assert {worker.cpus: worker.node for worker in apart} == {(0,): 0, (1,): 1}
    (both,) = settings_of("--workers", "1").models[0].pool.workers
    assert (both.cpus, both.node) == ((0, 1), None)


# ---------------------------------------------------------------- without llama.cpp


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_llama_cpp")
def test_asking_for_llama_cpp_where_it_is_not_installed_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--engine", "llama_cpp"]) == ExitStatus.CONFIGURATION

    said = sentence(capsys.readouterr())
    assert said == "llama.cpp is not installed: pip install 'tokenflume[llama]' installs it"


@pytest.mark.usefixtures("without_llama_cpp")
def test_the_bundled_model_is_served_without_llama_cpp_too() -> None:
    assert settings_of().models[0].model.engine == "ctransformers"


def test_every_worker_has_cpus_of_its_own() -> None:
    settings = settings_of("--engine", "ctransformers")  # a worker for each core

    cpus = [cpu for worker in settings.models[0].pool.workers for cpu in worker.cpus]
    assert len(cpus) == len(set(cpus))
    assert set(cpus) <= os.sched_getaffinity(0)
    assert [worker.index for worker in settings.models[0].pool.workers] == list(
        range(len(settings.models[0].pool.workers))
    )


def test_without_a_model_the_bundled_one_is_served() -> None:
    model = settings_of().models[0].model

    assert (model.path, model.engine) == (BUNDLED_MODEL.resolve(), "llama_cpp")


def test_a_relative_path_is_kept_from_changing_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "model.gguf", b"GGUF")
    monkeypatch.chdir(tmp_path)

    assert settings_of("--model", "model.gguf").models[0].model.path == path


def test_the_echo_engine_needs_no_model_and_takes_one_of_options(tmp_path: Path) -> None:
    options = written(tmp_path / "echo.json", b"{}")

    assert settings_of("--engine", "echo").models[0].model.path is None
    named = settings_of("--engine", "echo", "--model", str(options))
    assert named.models[0].model.path == options


def test_what_cannot_work_together_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="2 workers need a thread each"):
        settings_of("--engine", "echo", "--workers", "2", "--num-threads", "1")
