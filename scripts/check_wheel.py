#!/usr/bin/env python3
"""Build the wheel, install it into an empty virtual environment, serve from it, and send a request.

It checks that the wheel has all packages, the package data (page, model, chat templates) and the
console script.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("server", "workers", "shared")


def main() -> None:
    """Run the checks. Raises SystemExit with a message if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Path(folder)
        wheel = build_wheel(elsewhere)
        check_modules(wheel)
        environment = elsewhere / "venv"
        venv.create(environment, with_pip=True)
        run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
        check_templates(environment / "bin" / "python", elsewhere)
        check_server(environment / "bin" / "tokenflume", elsewhere)
    print(f"{wheel.name} serves its page and its model")


def build_wheel(folder: Path) -> Path:
    """The path of the wheel, which is built in `folder`."""
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # it may have old modules
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(*command: str | Path) -> None:
    """Run a command. Its output is shown only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def check_modules(wheel: Path) -> None:
    """Check that all modules of the source tree are in the wheel: setup.cfg lists the packages."""
    folders = [ROOT / name for name in PACKAGES]
    modules = {str(path.relative_to(ROOT)) for each in folders for path in each.rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        missing = sorted(modules - set(archive.namelist()))
    if missing:
        raise SystemExit(f"the wheel lacks {', '.join(missing)}; does setup.cfg list the packages?")


def check_templates(python: Path, folder: Path) -> None:
    """Check that all chat templates of the source tree are in the wheel."""
    names = sorted(path.stem for path in (ROOT / "server" / "chat" / "templates").glob("*.jinja"))
    code = f"from server.chat import built_in_names as found; assert found() == {names!r}, found()"
    run("env", "-C", folder, python, "-I", "-c", code)


def check_server(program: Path, folder: Path) -> None:
    """Check that the server runs in an unrelated folder, without the source tree on any path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    server = subprocess.Popen(
        [program, "--port", "0"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = read_until_ready(server)
        page = fetch(f"{url}/")
        if "<title>" not in page:
            raise SystemExit("the server of the wheel has no page")
        tale = fetch(f"{url}/stream", {"prompt": "Once upon a time", "num_predict": 5})
        if tale.count("\n") != 5:
            raise SystemExit(f"the model of the wheel answered {tale!r} instead of 5 tokens")
    finally:
        server.terminate()
        server.communicate(timeout=30)


def read_until_ready(server: subprocess.Popen[str]) -> str:
    """The URL of the server, once its log says that a worker has loaded the model."""
    url, is_loaded = "", False
    assert server.stderr is not None
    for line in server.stderr:
        found = re.search(r"listening on (http://\S+)", line)
        url = found[1] if found else url
        is_loaded = is_loaded or ": loaded " in line
        if url and is_loaded:
            return url
    raise SystemExit("the server of the wheel ended before it was ready")


def fetch(url: str, body: dict[str, object] | None = None) -> str:
    """The answer to a GET request, or to a POST request with this JSON body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, timeout=30) as response:
        text: str = response.read().decode()
    return text


if __name__ == "__main__":
    main()
