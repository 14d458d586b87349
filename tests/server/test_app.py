"""The application: the details of an unexpected exception are logged, and not sent to clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.chat.system_prompts import SystemPrompts
from server.generation.models import Models
from shared.sampling import SamplingParams
from workers.pool.catalog import LoadedModels


class BrokenModels(LoadedModels):
    """Has a defect."""

    def use(self, name: str | None) -> Any:
        raise RuntimeError("a secret of /etc/secret")


@pytest.mark.parametrize("path", ["/stream", "/v1/completions", "/api/generate"])
def test_a_defect_is_a_500_in_the_dialects_shape_that_tells_no_secret(path: str) -> None:
    models = Models(BrokenModels([]), SamplingParams(), SystemPrompts())
    client = TestClient(
        create_app(models), base_url="http://localhost", raise_server_exceptions=False
    )
    answer = client.post(path, content=json.dumps({"model": "x", "prompt": "x"}))
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert "the server failed; its log says how" in json.dumps(error)
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
