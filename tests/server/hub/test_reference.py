"""Names of models: what they name, and what names nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.hub.reference import HubReference, parse_reference
from server.hub.resolve import resolve_model
from shared.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf:a/b/c.gguf", HubReference("a/b", "c.gguf", "main")),
        ("hf:a/b/c/d/e.gguf", HubReference("a/b", "c/d/e.gguf", "main")),
        ("hf:a/b/c.gguf@v1.0", HubReference("a/b", "c.gguf", "v1.0")),
        ("hf:a/b/c.gguf@refs/pr/1", HubReference("a/b", "c.gguf", "refs/pr/1")),
        ("hf:a/b/c@d.gguf@main", HubReference("a/b", "c@d.gguf", "main")),
        ("hf:The-Bloke/M_1.x/a b.gguf", HubReference("The-Bloke/M_1.x", "a b.gguf", "main")),
    ],
)
def test_a_reference_names_repository_file_and_revision(text: str, reference: HubReference) -> None:
    assert parse_reference(text) == reference
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:a",
        "hf:a/b",
        "hf:a/b/",
        "hf:a/b/c/",
        "hf:a//c.gguf",
        "hf:/a/b/c.gguf",
        "hf://a/b/c.gguf",
        "hf:a/b/c.gguf@",
        "hf:a/b/@main",
        "hf:@main",
        "hf:a/b/../c.gguf",
        "hf:a/b/./c.gguf",
        "hf:../b/c.gguf",
        "hf:a/b--c/d.gguf",
        "hf:a/b.git/d.gguf",
        "hf:a/é/d.gguf",
        "hf:a/-b/d.gguf",
        "hf:a/b/c.gguf@../../x",
        "hf:a/b/c.gguf@a//b",
        "hf:a/b/c\n.gguf",
        "hf:a/b/c\\d.gguf",
        "hf:a/b/ c.gguf",
        "hf:" + "a" * 97 + "/b/c.gguf",
    ],
)
def test_what_names_nothing_is_refused_with_the_syntax(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a model: it must be hf:OWNER/REPO"):
        parse_reference(text)


@given(st.text(alphabet="ab/.@-_ \\\0\n", max_size=24))
def test_no_reference_leads_out_of_the_folders_of_the_cache(text: str) -> None:
    try:
        reference = parse_reference(f"hf:{text}")
    except ConfigurationError:
        return
    for path in (reference.file, reference.revision):
        assert not {"", ".", ".."} & set(path.split("/"))
        assert "\0" not in path
        assert "\\" not in path


def test_a_split_model_has_all_its_parts_whichever_is_named() -> None:
    parts = tuple(f"x/m-0000{part}-of-00003.gguf" for part in (1, 2, 3))
    assert HubReference("a/b", parts[1]).parts == parts


def test_anything_else_is_a_path() -> None:
    assert resolve_model("models/m.gguf") == Path("models/m.gguf")
    assert resolve_model("./hf:a/b/c") == Path("hf:a/b/c")
