"""Building llama-server: what is there is not built again, what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import build_llama_server


def test_a_binary_that_exists_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    version = build_llama_server.installed_version()
    binary = tmp_path / f"llama-server-{version}" / "build" / "bin" / "llama-server"
    binary.parent.mkdir(parents=True)
    binary.touch()
    monkeypatch.setenv("PATH", "")
    assert build_llama_server.main(["-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{binary}\n"


def test_a_missing_tool_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_llama_server.main(["-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("build_llama_server: cmake is missing")
    (tmp_path / "cmake").touch(mode=0o755)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build_llama_server.main(["-o", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("build_llama_server: a C++ compiler is missing: none of no-such")
