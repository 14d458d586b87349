"""Build llama.cpp's own server, llama-server, to compare it with tokenflume.

    pip install 'tokenflume[llama]'
    python -m scripts.bench.build_llama_server            # about ten minutes on two cores
    python -m scripts.bench llama --llama-server "$(python -m scripts.bench.build_llama_server)"

The source is the llama.cpp in the source package of the installed llama-cpp-python, so both
programs run the same kernels. pip downloads that package. The binary is built for this machine's
CPU, without its web page and without TLS. Standard output is only the path of the binary. If the
binary exists already, nothing is built.
Exit status: 0 the binary exists; 1 something is missing or failed, which a message says.
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
    "LLAMA_USE_PREBUILT_UI": "OFF",  # it would be downloaded
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


class BuildError(Exception):
    """The binary cannot be built; the message is one sentence for the user."""


def build(output: Path) -> Path:
    """The binary in `output`; it is built if it does not exist. Raises BuildError."""
    folder = output / f"llama-server-{installed_version()}"
    binary = folder / "build" / "bin" / "llama-server"
    if not binary.exists():
        check_tools()
        configure_and_compile(fetch_source(folder), folder / "build")
    return binary


def installed_version() -> str:
    """The version of the installed llama-cpp-python. Raises BuildError."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(
            f"{PACKAGE} is not installed, which determines the llama.cpp to build:"
            f" pip install {PACKAGE}"
        ) from None


def check_tools() -> None:
    """Raise BuildError if cmake or a C++ compiler is missing."""
    if shutil.which("cmake") is None:
        raise BuildError("cmake is missing: install it with apt-get or pip")
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else COMPILERS
    if not any(map(shutil.which, compilers)):
        raise BuildError(
            f"a C++ compiler is missing: none of {', '.join(compilers)} is on the path"
        )


def fetch_source(folder: Path) -> Path:
    """Unpack the llama.cpp of llama-cpp-python's source package below `folder`; return its path."""
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
        raise BuildError(f"{packed} does not contain one package with llama.cpp: {error}") from None
    return source.parent


def configure_and_compile(source: Path, folder: Path) -> None:
    """Build llama-server in `folder`. Raises BuildError."""
    settings = [f"-D{name}={value}" for name, value in SETTINGS.items()]
    run("configuring", "cmake", "-S", source, "-B", folder, *settings)
    jobs = str(len(os.sched_getaffinity(0)))
    run("compiling", "cmake", "--build", folder, "--target", "llama-server", "-j", jobs)


def run(what: str, *command: str | Path) -> None:
    """Run a command, with its output on standard error. Raises BuildError."""
    print(f"build_llama_server: {what}", file=sys.stderr, flush=True)
    status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if status != 0:
        raise BuildError(f"{what} failed with status {status}; see its output above")


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
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.build_llama_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        default=MODELS,
        help="the build folder is made in this folder (default: %(default)s, where the models are)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
