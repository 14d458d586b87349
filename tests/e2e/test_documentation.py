"""The documentation holds: what it says is done, as it stands there; links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from server.config.options import BUNDLED_MODEL
from tests.helpers.documentation import (
    LANGUAGES,
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    links_of,
    modules_of,
    paths_of,
    sections_of,
)
from tests.helpers.hub_server import environment, hub_server
from tests.helpers.models import build_llama_gguf, split_gguf
from tests.helpers.reader import ADAPTED, NOT_RUN, Reader

WITH_SYSTEMD = "As a daemon"
"""Commands that tests/e2e/test_systemd_machine.py runs, in a machine that has one."""
TWO_CORES = (
    "Against llama-server",
    "Several models",
    "Configuration files",
    "Serve your own model",
)
"""Sections whose commands start two workers, or a worker of two threads."""


def readable(sections: Container[str], *, are_in: bool) -> list[Any]:
    """The sections with commands, of all pages: those that are in `sections`, or all others."""
    return [
        pytest.param(blocks, id=f"{page.stem}-{section}")
        for page in PAGES
        for section, blocks in sections_of(page).items()
        if section != WITH_SYSTEMD and any(block.language in ("sh", "python") for block in blocks)
        if (section in sections) == are_in
    ]


@pytest.fixture
def hub_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A hub that has the files which the pages name."""
    with hub_server() as stand_in:
        stand_in.add("OWNER/REPO", "q4/model.gguf", BUNDLED_MODEL.read_bytes())
        for part in split_gguf(build_llama_gguf(tmp_path / "model.gguf"), tmp_path, parts=3):
            stand_in.add("OWNER/REPO", part.name, part.read_bytes())
        repository = stand_in.repositories["OWNER/REPO"]
        repository.refs["REVISION"] = repository.refs["main"]
        yield environment(stand_in, tmp_path / "hub")


def read(blocks: list[Block], folder: Path, environment: dict[str, str]) -> None:
    folder.mkdir()
    with Reader(folder, environment) as reader:
        for block in blocks:
            reader.read(block)


@pytest.mark.parametrize("blocks", readable(TWO_CORES, are_in=False))
def test_a_reader_can_do_what_a_page_says(
    blocks: list[Block], tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    read(blocks, tmp_path / "reader", hub_environment)


@pytest.mark.usefixtures("both_cores")
@pytest.mark.parametrize("blocks", readable(TWO_CORES, are_in=True))
def test_a_reader_with_two_cores_can_do_what_a_page_says(
    blocks: list[Block], tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    read(blocks, tmp_path / "reader", hub_environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block.page}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = ROOT / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_and_modules_that_a_page_names_exist(page: Path) -> None:
    missing = [path for path in paths_of(page) if not (ROOT / path).exists()]
    missing += [name for name in modules_of(page) if find_spec(name) is None]
    assert not missing


def test_sections_that_need_two_cores_are_still_there() -> None:
    assert set(TWO_CORES) <= {section for page in PAGES for section in sections_of(page)}


def test_the_pages_for_contributors_name_paths() -> None:
    for name, at_least in (("CONTRIBUTING.md", 25), ("ARCHITECTURE.md", 20)):
        assert len(paths_of(ROOT / name)) > at_least


def test_what_is_run_in_another_way_or_not_at_all_is_still_there() -> None:
    commands = [c for page in PAGES for block in blocks_of(page) for c in block.commands]
    for pattern in (*ADAPTED, *NOT_RUN):
        assert any(re.search(pattern, command) for command in commands), pattern
