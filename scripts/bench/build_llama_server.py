#!/usr/bin/env python3
"""Build llama.cpp's own server, llama-server, to compare tokenflume with.

    pip install 'tokenflume[llama]'
    python -m scripts.bench.build_llama_server            # about ten minutes on two cores
    python -m scripts.bench llama --llama-server "$(python -m scripts.bench.build_llama_server)"

The source is the llama.cpp inside the source package of the llama-cpp-python that is installed
here: both programs then run the same kernels. pip fetches it, from where pip fetches everything.
It is built for this machine's CPU, without its web page and without TLS. Standard output is the
path of the binary and nothing else; a second run finds it there and builds nothing.
Exit status: 0 it is there; 1 something is missing or failed, in one sentence.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.models import MODELS

PACKAGE = "llama-cpp-python"
SOURCE = Path("vendor", "llama.cpp")
COMPILERS = ("c++", "g++", "clang++")
SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # which would be downloaded
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


class BuildError(Exception):
    """There will be no binary; the message is one sentence for the user."""


def build(output: Path) -> Path:
    """The binary in `output`, built if it is not there yet. Raises BuildError."""
    folder = output / f"llama-server-{installed_version()}"
    binary = folder / "build" / "bin" / "llama-server"
    if not binary.exists():
        check_tools()
        configure_and_compile(fetch_source(folder), folder / "build")
    return binary


def installed_version() -> str:
    """The version of llama-cpp-python whose llama.cpp is wanted. Raises BuildError."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(
            f"{PACKAGE} is not installed, so nobody knows which llama.cpp to build:"
            f" pip install {PACKAGE}"
        ) from None


def check_tools() -> None:
    """Raise BuildError when cmake or a C++ compiler is missing."""
    if shutil.which("cmake") is None:
        raise BuildError("there is no cmake: install it, with apt-get or pip")
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else COMPILERS
    if not any(map(shutil.which, compilers)):
        raise BuildError(f"there is no C++ compiler: none of {', '.join(compilers)} is on the path")


def fetch_source(folder: Path) -> Path:
    """The llama.cpp in llama-cpp-python's source package, unpacked below `folder`."""
    name = f"{PACKAGE}=={installed_version()}"
    packed, unpacked = folder / "package", folder / "source"
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--no-deps", "--no-binary", PACKAGE, "--dest", packed)
    run(f"downloading {name}", sys.executable, "-m", "pip", "download", *options, name)
    try:
        (archive,) = packed.glob("*.tar.gz")
        with tarfile.open(archive) as package:
            package.extractall(unpacked, filter="data")
        (source,) = unpacked.glob(f"*/{SOURCE}/CMakeLists.txt")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise BuildError(f"{packed} does not hold one package with a llama.cpp: {error}") from None
    return source.parent


def configure_and_compile(source: Path, folder: Path) -> None:
    settings = [f"-D{name}={value}" for name, value in SETTINGS.items()]
    run("configuring", "cmake", "-S", source, "-B", folder, *settings)
    jobs = str(len(os.sched_getaffinity(0)))
    run("compiling", "cmake", "--build", folder, "--target", "llama-server", "-j", jobs)


def run(what: str, *command: str | Path) -> None:
    """Run a command, its output on standard error. Raises BuildError."""
    print(f"build_llama_server: {what}", file=sys.stderr, flush=True)
    status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if status != 0:
        raise BuildError(f"{what} failed with status {status}; its own words are above")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse_arguments(arguments)
    try:
        print(build(options.output))
    except (BuildError, OSError) as error:
        print(f"build_llama_server: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        default=MODELS,
        help="a folder is made in it (default: that of bench.py's models, %(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
