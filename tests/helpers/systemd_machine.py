"""A real systemd as process 1 of namespaces of its own, on this machine's files and network.

What it writes to /etc, /var, /opt, /srv and /tmp goes to a file system in memory; it knows no
units but those here. It needs root, a cgroup tree of version 2, and the right to make namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

BOOT_S = 20.0
BOOT = r"""
set -e
echo $$ > "$1/cgroup.procs"
exec setpriv --pdeathsig KILL \
    unshare --mount --uts --ipc --cgroup --pid --fork --kill-child bash -ec '
    memory=$1
    mount -t tmpfs tmpfs "$memory"
    for folder in etc var opt srv tmp; do
        mkdir "$memory/$folder" "$memory/$folder.work"
        mount -t overlay overlay \
            -o "lowerdir=/$folder,upperdir=$memory/$folder,workdir=$memory/$folder.work" "/$folder"
    done
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /etc/systemd/system
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
        cp "/usr/lib/systemd/system/$unit" /etc/systemd/system/
    done
    for target in sysinit basic network-online multi-user shutdown sockets machine; do
        printf "[Unit]\nDescription=%s\nDefaultDependencies=no\n" "$target" \
            > "/etc/systemd/system/$target.target"
    done
    printf "Requires=%s\nAfter=%s\n" systemd-journald.service systemd-journald.service \
        >> /etc/systemd/system/machine.target
    exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH=/etc/systemd/system \
        /usr/lib/systemd/systemd --system --unit=machine.target --log-target=journal
' boot "$2"
"""


class CannotBoot(Exception):
    """Why there can be no such machine here."""


class SystemdMachine:
    """A context: within it the machine runs. Raises CannotBoot."""

    def __enter__(self) -> SystemdMachine:
        self._cgroup = made_cgroup()
        self._memory = Path(tempfile.mkdtemp())
        self._outer = subprocess.Popen(
            ["bash", "-c", BOOT, "boot", str(self._cgroup), str(self._memory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self._until_booted()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._end()

    def run(self, *command: str, check: bool = True) -> str:
        """What the command says to standard output, run in the machine."""
        entered = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-p", "-C", "--", *command]
        environment = {**os.environ, "SYSTEMD_UNIT_PATH": "/etc/systemd/system"}
        ended = subprocess.run(
            entered, env=environment, cwd="/", capture_output=True, text=True, timeout=90,
            check=False,
        )  # fmt: skip
        assert not check or ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def path(self, path: str | Path) -> Path:
        """Of a file as the machine sees it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def show(self, unit: str) -> dict[str, str]:
        """The unit's properties."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def until(self, unit: str, within_s: float = 40.0, **properties: str) -> dict[str, str]:
        """Poll the unit until it has these properties."""
        deadline = time.monotonic() + within_s
        while (shown := self.show(unit)) | properties != shown:
            seen = {name: shown.get(name) for name in properties}
            assert time.monotonic() < deadline, f"{seen}, not {properties}"
            time.sleep(0.05)
        return shown

    def _until_booted(self) -> None:
        deadline = time.monotonic() + BOOT_S
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        while time.monotonic() < deadline and self._outer.poll() is None:
            self.pid = int((children.read_text().split() or ["0"])[0])
            if self.pid and self.path("/run/systemd/private").exists():
                state = self.run("systemctl", "is-active", "machine.target", check=False)
                if state == "active\n":
                    return
            time.sleep(0.05)
        self._outer.kill()
        assert self._outer.stderr is not None
        raise CannotBoot(f"systemd does not start in a namespace: {self._outer.stderr.read()}")

    def _end(self) -> None:
        self._outer.kill()  # and with it its child, process 1, and with that all there are
        self._outer.wait()
        assert self._outer.stderr is not None
        self._outer.stderr.close()
        removed_cgroup(self._cgroup)
        self._memory.rmdir()


def made_cgroup() -> Path:
    """A cgroup of version 2, for the machine alone. Raises CannotBoot."""
    if os.geteuid() != 0:
        raise CannotBoot("it needs root")
    for program in ("unshare", "nsenter", "setpriv", "/usr/lib/systemd/systemd"):
        if not shutil.which(program):
            raise CannotBoot(f"there is no {program}")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    trees = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    if not trees:
        raise CannotBoot("there is no cgroup tree of version 2")
    cgroup = trees[0] / f"tokenflume-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        raise CannotBoot(f"no cgroup can be made: {error}") from None
    return cgroup


def removed_cgroup(cgroup: Path) -> None:
    """With those below it, once their processes have gone."""
    deadline = time.monotonic() + BOOT_S
    for folder in (*sorted(cgroup.rglob("*/"), reverse=True), cgroup):
        while folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                assert time.monotonic() < deadline, f"processes are left in {folder}"
                time.sleep(0.02)
