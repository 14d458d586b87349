"""The fields of a body as a table, which is both checked and published in /openapi.json."""

from __future__ import annotations

import ast
import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from server.http.json_body import parse_object
from shared import sampling
from shared.errors import InvalidRequest
from shared.sampling import MAX_CACHE_ID, SamplingParams
from shared.validation import TEXT, Check, Schema, integers, nullable, numbers, or_none

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Form:
    """The fields that an object may have."""

    checks: Mapping[str, Check[Any]]
    """By the fields' names."""
    needed: tuple[str, ...] = ()
    """Fields that must be present."""
    one_needed: tuple[str, ...] = ()
    """Fields of which exactly one must be present."""
    is_null_absent: bool = True
    """A field that is null counts as absent. False: its check decides."""

    def read(self, body: bytes) -> dict[str, Any]:
        """The values of a body's fields. Raises InvalidRequest, which names the field."""
        return self._read(parse_object(body))

    def check(self) -> Check[dict[str, Any]]:
        """The check of a field that is such an object."""
        return Check(self.schema(), lambda name, value: self._read(json_object(name, value), name))

    def schema(self) -> Schema:
        """The JSON Schema of such objects."""
        docs = sampling_docs() if self.checks.keys() & SAMPLING.keys() else {}
        properties = {}
        for name, check in self.checks.items():
            schema = dict(check.schema)
            description = schema.pop("description", "")
            if SAMPLING.get(name) is check:
                description = docs[name]
            if self.is_null_absent and name not in self.needed:
                schema = dict(nullable(schema))
            properties[name] = schema | ({"description": description} if description else {})
        needed = {"required": list(self.needed)} if self.needed else {}
        one = {"oneOf": [{"required": [name]} for name in self.one_needed]}
        return {
            "type": "object",
            "properties": properties,
            **needed,
            **(one if self.one_needed else {}),
            "additionalProperties": False,
        }

    def _read(self, given: Mapping[str, Any], within: str = "") -> dict[str, Any]:
        prefix = f"{within}." if within else ""
        for name in self.needed:
            if name not in given or (self.is_null_absent and given[name] is None):
                raise InvalidRequest(f"{prefix}{name} is missing", field=within or name)
        if self.one_needed and len(given.keys() & set(self.one_needed)) != 1:
            *others, last = self.one_needed
            names = f"{', '.join(others)} and {last}"
            raise InvalidRequest(f"{within or 'the body'} must have one of {names}")
        for name in given:
            if name not in self.checks:
                has = f"{within} has an " if within else ""
                raise InvalidRequest(f"{has}unknown field: {name!r:.80}", field=within or name)
        result = {}
        for name, value in given.items():
            if value is None and self.is_null_absent:
                continue
            with about(within or name):
                result[name] = self.checks[name](prefix + name, value)
        return result


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Within, an InvalidRequest that names no field names this one."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field=error.field or name) from None


def json_object(name: str, value: Any) -> Mapping[str, Any]:
    """The value, if it is an object. Raises InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    return value


# ------------------------------------------------------------ checks of several endpoints


def as_given(check: Check[Any]) -> Check[Any]:
    """The same check, but the result is the value as the client sent it."""

    def read(name: str, value: Any) -> Any:
        check(name, value)
        return value

    return Check(check.schema, read)


def empty_or(check: Check[T], empty: T) -> Check[T]:
    """The same check, which also accepts `empty`: many clients send it for unset fields."""
    return Check(
        {"anyOf": [{"const": empty}, check.schema]},
        lambda name, value: (
            empty if type(value) is type(empty) and value == empty else check(name, value)
        ),
    )


def one_of(*values: str) -> Check[str]:
    """A check that accepts these texts."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise InvalidRequest(f"{name} must be {' or '.join(values)}")
        return value

    return Check({"enum": list(values)}, read)


PLAIN_TEXT = empty_or(TEXT, "")
MODEL = or_none(TEXT).saying("The model's name; without it, the server's default model.")
TIMEOUT = or_none(numbers(above=0, high=86_400)).saying(
    "Seconds from the request's arrival to its deadline; null: no deadline."
)
CACHE = integers(0, MAX_CACHE_ID).saying(
    "Id under which the state of the processed prompt is saved; 0: it is not saved."
)
SAMPLING: Mapping[str, Check[Any]] = {
    name: as_given(check)
    for name, check in {**sampling.CHECKS, "temperature": sampling.CHECKS["temp"]}.items()
}
"""The sampling fields. Their values stay as they are, for SamplingParams.from_fields."""


def sampling_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields in `given`. Raises InvalidRequest if some exclude each other."""
    found = {name: value for name, value in given.items() if name in SAMPLING}
    with about("temp" if "temp" in found and "temperature" in found else "grammar"):
        SamplingParams().from_fields(found)
    return found


def sampling_docs() -> dict[str, str]:
    """The docstrings of SamplingParams's fields, by field."""
    body = ast.parse(inspect.getsource(SamplingParams)).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    docs: dict[str, str] = {}
    for field, doc in itertools.pairwise(statements):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(said))):
                docs[name] = inspect.cleandoc(said)
    return docs | {"temperature": "Same as temp."}
