"""The dashboard as Grafana takes it. That its metrics are there: tests/e2e/test_metrics.py."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.helpers.paths import ROOT

DASHBOARD = json.loads((ROOT / "scripts" / "grafana-dashboard.json").read_text("utf-8"))
COLUMNS = 24
BUILT_IN = {"__rate_interval"}


def panels(*, rows: bool = False) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if (panel["type"] == "row") == rows]


def expressions() -> list[str]:
    _, *variables = DASHBOARD["templating"]["list"]
    asked = [variable["query"]["query"] for variable in variables]
    return asked + [target["expr"] for panel in panels() for target in panel["targets"]]


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_every_panel_has_a_title_a_unit_and_queries_with_letters() -> None:
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + index) for index in range(len(letters))]


def test_whoever_imports_it_chooses_the_data_source() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    assert "id" not in DASHBOARD  # it would be that of another Grafana's


def test_queries_use_variables_that_there_are_and_close_what_they_open() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | BUILT_IN
    for expression in expressions():
        assert set(re.findall(r"\$(\w+)", expression)) <= names
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
