"""Merges schemas that apply together: allOf, and keywords beside a reference or a union."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

NOTES = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "$id", "$schema", "$anchor", "$defs", "definitions", "discriminator",
}  # fmt: skip
"""Keywords without an effect on what is valid."""


class MergeError(Exception):
    """Why two schemas cannot be merged, as a clause."""


def merge(one: Any, other: Any) -> Any:
    """A schema that allows what both schemas allow. Raises MergeError."""
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    if one is False or other is False:
        return False
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise MergeError("a schema must be an object")
    one, other = _without_forbidden(one, other), _without_forbidden(other, one)
    merged = dict(one)
    for keyword, value in other.items():
        if keyword not in merged or keyword in NOTES:
            merged.setdefault(keyword, value)
        elif merged[keyword] != value:
            merged[keyword] = _both(keyword, merged[keyword], value)
    return merged


def _both(keyword: str, one: Any, other: Any) -> Any:
    how = _HOW.get(keyword)
    if how is None:
        raise MergeError(f"allOf: two different values of {keyword} cannot be expressed")
    try:
        return how(one, other)
    except (TypeError, AttributeError):
        raise MergeError(f"allOf: {keyword} has a value of a wrong type") from None


def _types(one: Any, other: Any) -> Any:
    first, second = ([given] if isinstance(given, str) else given for given in (one, other))
    common = [name for name in first if name in second]
    if "integer" not in common and "integer" in [*first, *second]:
        common += ["integer"] * ("number" in first or "number" in second)
    if not common:
        raise MergeError(f"allOf: a value cannot be of type {one} and of type {other}")
    return common


def _values(one: list[Any], other: list[Any]) -> list[Any]:
    common = [value for value in one if value in other]
    if not common:
        raise MergeError("allOf: the enums have no common value")
    return common


def _properties(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    common = {name: merge(one[name], other[name]) for name in one if name in other}
    return {**one, **other, **common}


LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_HOW: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _values,
    "properties": _properties,
    "items": merge,
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
    "allOf": lambda one, other: [*one, *other],
    "additionalProperties": merge,
    "uniqueItems": lambda one, other: one or other,
    **dict.fromkeys(LEAST, max),
    **dict.fromkeys(MOST, min),
}


def _without_forbidden(schema: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`schema`, with `other`'s additionalProperties merged into properties that `other` lacks."""
    further = other.get("additionalProperties", True)
    known, properties = other.get("properties", {}), schema.get("properties", {})
    if further is True or not isinstance(properties, dict) or not isinstance(known, dict):
        return schema
    changed = {
        name: part if name in known else merge(part, further) for name, part in properties.items()
    }
    return {**schema, "properties": changed} if properties else schema


def are_disjoint(schemas: Sequence[Any]) -> bool:
    """Whether it is certain that no value is valid by two of the schemas."""
    return all(_are_two_disjoint(*pair) for pair in itertools.combinations(schemas, 2))


def _are_two_disjoint(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    values = _constants(one), _constants(other)
    if values[0] is not None and values[1] is not None:
        return not any(value in values[1] for value in values[0])
    types = _type_names(one), _type_names(other)
    if types[0] and types[1] and not types[0] & types[1]:
        return True
    required = set(one.get("required", ())) & set(other.get("required", ()))
    properties = one.get("properties", {}), other.get("properties", {})
    are_objects = types[0] == types[1] == {"object"}
    return are_objects and any(
        _are_two_disjoint(properties[0].get(name), properties[1].get(name)) for name in required
    )


def _constants(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type_names(schema: dict[str, Any]) -> set[str]:
    """The schema's types. Integers count as numbers."""
    given = schema.get("type", [])
    names = {given} if isinstance(given, str) else set(given)
    return {"number" if name == "integer" else name for name in names}
