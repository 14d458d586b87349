"""API keys: whose a key is, and that a file which has gone bad changes nothing."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from server.http.keys import ApiKeys
from shared.errors import ConfigurationError

ALICE, BOB, CAROL = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"alice {ALICE}\nbob {BOB}\n")
    return path


def test_a_key_has_an_owner(path: Path) -> None:
    keys = ApiKeys(path)
    assert [keys.owner(key) for key in (ALICE, BOB, CAROL, "", "alice", "\udcff")] == [
        "alice",
        "bob",
        None,
        None,
        None,
        None,
    ]


def test_every_key_is_compared_with_all_known_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping at the first that fits, or at the first that differs, would tell by its time."""
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = ApiKeys(path)
    for key in (ALICE, BOB, "x"):
        compared.clear()
        keys.owner(key)
        assert len(compared) == 2
        assert all(len(known) == 32 for known in compared)  # digests, never keys


def test_a_changed_file_counts_after_a_reload(path: Path) -> None:
    keys = ApiKeys(path)
    path.write_text(f"carol {CAROL}\n")
    assert keys.owner(CAROL) is None
    keys.reload()
    assert (keys.owner(CAROL), keys.owner(ALICE)) == ("carol", None)


def test_a_file_that_has_gone_bad_leaves_the_keys_as_they_were(path: Path) -> None:
    keys = ApiKeys(path)
    for content in ("", "nonsense\n"):
        path.write_text(content)
        with pytest.raises(ConfigurationError):
            keys.reload()
        assert keys.owner(ALICE) == "alice"
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        keys.reload()
    assert keys.owner(BOB) == "bob"
