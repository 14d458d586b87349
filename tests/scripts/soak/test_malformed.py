"""Malformed requests must be refused with their status and a message."""

from __future__ import annotations

import random

from scripts.soak.malformed import BAD_REQUESTS, Malformed, draw_malformed, judge_malformed
from scripts.soak.raw_http import RawAnswer


def test_malformed_requests_must_be_refused_with_their_status_and_a_message() -> None:
    request = Malformed("no JSON", b"", 400)
    reason = b'{"error":{"code":"invalid_request"}}'
    assert not judge_malformed(request, RawAnswer(400, "", reason))
    assert "200 instead of 400" in judge_malformed(request, RawAnswer(200, "", b"{}"))
    assert "0 instead of 400" in judge_malformed(request, RawAnswer(0, "", b""))
    assert judge_malformed(request, RawAnswer(400, "", b"")) == "400 without an error message"
    assert judge_malformed(request, RawAnswer(503, "", reason)) == "503 without Retry-After"
    assert not judge_malformed(request, RawAnswer(503, "retry-after: 1\r\n", reason))
    names = {draw_malformed(random.Random(seed)).name for seed in range(2000)}
    assert {each.name for each in BAD_REQUESTS} <= names
