"""Converts JSON Schemas to grammars. Every text of the grammar is valid by the schema.

Not every valid JSON text is in the grammar: properties have the schema's order, a pattern matches a
whole string, and additional properties occur only if the schema mentions them. A keyword that
cannot be expressed is an error and never ignored. Keywords that JSON Schema (2020-12) does not
define have no effect, by its own rules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from workers.grammar.gbnf import GrammarError, parse_gbnf
from workers.grammar.gbnf_cost import check_cost
from workers.grammar.json_merge import MergeError, are_disjoint, merge
from workers.grammar.json_pattern import PatternError, pattern_to_gbnf
from workers.grammar.json_text import FORMATS, RULES, integers, literal, numbers

MAX_RULES = 5_000
"""The most rules of a converted schema."""
MAX_REPETITIONS = 2_000
"""The most repetitions of an item or a character. A higher maximum is lowered to this."""
FURTHEST_BOUND = 10**30
"""The largest absolute value of a number's bound."""
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
OF_TYPE = {
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    },
}  # fmt: skip
"""Keywords that apply to one type only. A schema without a type that has such keywords is taken to
be of their types."""
INEXPRESSIBLE = {
    "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies",
    "contains", "patternProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef",
}  # fmt: skip
"""Keywords that are refused."""
Schema = Mapping[str, Any]


class SchemaError(Exception):
    """What is invalid or cannot be expressed, as a clause."""


def schema_to_gbnf(text: str) -> str:
    """The grammar for a schema, which is a JSON text. Raises SchemaError."""
    try:
        converter = _Converter(json.loads(text))
        return converter.convert()
    except MergeError as error:
        raise SchemaError(str(error)) from None
    except RecursionError:
        raise SchemaError("it is nested too deeply, or refers to itself endlessly") from None
    except ValueError:
        raise SchemaError("it is not a JSON text") from None
    except (TypeError, AttributeError, KeyError):
        raise SchemaError("a keyword has a value of a wrong type") from None


class _Converter:
    """Collects the rules of one schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._named: dict[str, str] = {}  # bodies to their names
        self._references: dict[str, str] = {}  # targets to the names of their rules

    def convert(self) -> str:
        body = self._body(self._root)
        lines = [f"root ::= {body}", *(f"{name} ::= {rule}" for name, rule in self._rules.items())]
        return "\n".join(lines) + "\n"

    # ---------------------------------------------------------------- rules

    def _use(self, name: str) -> str:
        """Include one of RULES and the rules that it uses. Returns its name."""
        if name not in self._rules:
            self._rules[name] = RULES[name]
            for used in re.findall(r"[a-z][a-z0-9-]*", _without_characters(RULES[name])):
                self._use(used)
        return name

    def _named_rule(self, body: str) -> str:
        """The name of a rule with this body."""
        if body in RULES and body in self._rules:
            return body
        name = self._named.get(body)
        if name is None:
            name = self._named[body] = self._new_name()
            self._rules[name] = body
        return name

    def _new_name(self) -> str:
        if len(self._rules) + len(self._references) >= MAX_RULES:
            raise SchemaError(f"it needs more than {MAX_RULES} rules")
        return f"s{len(self._named) + len(self._references)}"

    def _rule(self, schema: Any) -> str:
        return self._named_rule(self._body(schema))

    # ---------------------------------------------------------------- any schema

    def _body(self, schema: Any) -> str:
        if schema is True or schema == {}:
            return self._use("value")
        if not isinstance(schema, dict):
            raise SchemaError(
                "false allows no value" if schema is False else "a schema must be an object"
            )
        for keyword in INEXPRESSIBLE & schema.keys():
            raise SchemaError(f"{keyword} cannot be expressed as a grammar")
        if "$ref" in schema:
            return self._reference(schema)
        if "allOf" in schema:
            return self._body(self._all_of(schema))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._union(schema, keyword)
        if "const" in schema or "enum" in schema:
            return self._constants(schema)
        return self._of_types(schema)

    def _reference(self, schema: dict[str, Any]) -> str:
        others = {key: value for key, value in schema.items() if key != "$ref"}
        if self._says_something(others):
            return self._body(merge(self._target(schema["$ref"]), others))
        reference = schema["$ref"]
        if reference not in self._references:
            name = self._references[reference] = self._new_name()
            self._rules[name] = ""  # the body may refer to the name
            self._rules[name] = self._body(self._target(reference))
        return self._references[reference]

    def _target(self, reference: Any) -> Any:
        """The part of the schema that a reference points to."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaError(
                f"$ref must point into the schema, like #/$defs/name: {reference!r:.80}"
            )
        target = self._root
        for part in reference[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise SchemaError(f"$ref points to nothing: {reference!r:.80}")
        return target

    @staticmethod
    def _says_something(schema: Schema) -> bool:
        known = {"type", "enum", "const", "allOf", "anyOf", "oneOf", *INEXPRESSIBLE}
        return bool((known | set().union(*OF_TYPE.values())) & schema.keys())

    def _all_of(self, schema: dict[str, Any]) -> Any:
        merged: Any = {key: value for key, value in schema.items() if key != "allOf"}
        for part in _list(schema, "allOf"):
            merged = merge(merged, self._resolved(part))
        return merged

    def _resolved(self, schema: Any) -> Any:
        """The schema with its reference replaced by the target."""
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        others = {key: value for key, value in schema.items() if key != "$ref"}
        return merge(self._resolved(self._target(schema["$ref"])), others)

    def _union(self, schema: dict[str, Any], keyword: str) -> str:
        alternatives = [self._resolved(part) for part in _list(schema, keyword)]
        if keyword == "oneOf" and not are_disjoint(alternatives):
            raise SchemaError(
                "oneOf: a value could match two alternatives; use anyOf, or distinguish them by a"
                " required property with a const"
            )
        base = {key: value for key, value in schema.items() if key != keyword}
        if not self._says_something(base):
            return _either(self._rule(part) for part in _list(schema, keyword))
        bodies, errors = [], []
        for alternative in alternatives:
            try:
                bodies.append(self._rule(merge(base, alternative)))
            except MergeError as error:
                errors.append(str(error))
        if not bodies:
            raise SchemaError(f"{keyword}: no alternative is possible: {errors[0]}")
        return _either(bodies)

    def _constants(self, schema: dict[str, Any]) -> str:
        values = [schema["const"]] if "const" in schema else _list(schema, "enum")
        if "const" in schema and "enum" in schema:
            values = [value for value in values if value in _list(schema, "enum")]
        unchecked = OF_TYPE["object"] | OF_TYPE["array"] | {"format", "pattern", "multipleOf"}
        for keyword in unchecked & schema.keys():
            raise SchemaError(f"{keyword} cannot be expressed beside enum or const")
        allowed = [value for value in values if _allows(schema, value)]
        if not allowed:
            raise SchemaError("enum: none of its values is allowed by the other keywords")
        return _either(literal(json.dumps(value, ensure_ascii=False)) for value in allowed)

    def _of_types(self, schema: dict[str, Any]) -> str:
        makers: dict[str, Callable[[dict[str, Any]], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "number": self._number,
            "integer": self._number,
        }
        bodies = [
            makers[name](schema) if name in makers else self._use(name) for name in _types(schema)
        ]
        return bodies[0] if len(bodies) == 1 else _either(map(self._named_rule, bodies))

    # ---------------------------------------------------------------- objects

    def _object(self, schema: dict[str, Any]) -> str:
        properties = _mapping(schema, "properties")
        required = _list(schema, "required", of=str)
        further = schema.get("additionalProperties", not properties and not required)
        further = True if further == {} else further
        for name in required:
            if name not in properties:
                if schema.get("additionalProperties", True) is False:
                    raise SchemaError(f"required: {name!r:.80} is not a property that is allowed")
                properties[name] = schema.get("additionalProperties", True)
        possible = {
            name: part for name, part in properties.items() if part is not False or name in required
        }
        self._check_count(schema, len(set(required)), None if further else len(possible))
        if not possible and not further:
            return f'"{{" {self._use("space")} "}}"'
        if not possible and further is True:
            return self._use("object")
        members = [(self._member(name, part), name in required) for name, part in possible.items()]
        return self._members(members, self._further(set(properties), further))

    @staticmethod
    def _check_count(schema: Schema, least: int, most: int | None) -> None:
        low, high = _count(schema, "minProperties", 0), _count(schema, "maxProperties", math.inf)
        if low > least:
            raise SchemaError("minProperties cannot be expressed: name the properties in required")
        if high < (math.inf if most is None else most):
            raise SchemaError("maxProperties cannot be expressed as a grammar")

    def _member(self, name: str, schema: Any) -> str:
        space = self._use("space")
        key = literal(json.dumps(name, ensure_ascii=False))
        return self._named_rule(f'{key} {space} ":" {space} {self._rule(schema)}')

    def _further(self, names: set[str], schema: Any) -> str | None:
        """A member whose name is not in `names`."""
        if schema is False:
            return None
        space = self._use("space")
        key = self._other_name(names) if names else self._use("string")
        return self._named_rule(f'{key} {space} ":" {space} {self._rule(schema)}')

    def _members(self, members: list[tuple[str, bool]], further: str | None) -> str:
        """An object of these members in their order, with or without the optional ones."""
        space = self._use("space")
        comma = self._named_rule(f'{space} "," {space}')
        rest = f"({comma} {further})*" if further else ""
        # From the end: what may follow a member, and what may come if no member came before.
        following, leading = rest, [f"{further} {rest}"] if further else []
        is_optional = True
        for member, is_required in reversed(members):
            leads = f"{member} {following}".strip()
            if is_required:
                leading, is_optional = [leads], False
                following = f"{comma} {member} {following}".strip()
            else:
                leading = [leads, *leading]
                following = f"({comma} {member})? {following}".strip()
            following = self._named_rule(following) if following else ""
        inside = f"({_either(leading)}) {space}"
        return f'"{{" {space} ({inside})? "}}"' if is_optional else f'"{{" {space} {inside} "}}"'

    def _other_name(self, names: set[str]) -> str:
        """A string that is not in `names`. It has no escapes, which could hide a name."""
        plain = r'[^"\\\x00-\x1F\x7F]'
        body = self._other_ending({name for name in names if _is_plain(name)}, plain)
        return self._named_rule(f'"\\"" {body} "\\""')

    def _other_ending(self, endings: set[str], plain: str) -> str:
        """What may follow a prefix that some names share. `endings`: the rest of these names."""
        first = sorted({ending[0] for ending in endings if ending})
        if not first:  # a name ends here, so every longer string is another name
            return f"{plain} {plain}*" if "" in endings else f"{plain}*"
        inside = "".join(map(_in_brackets, first))
        options = [f'[^{inside}"\\\\\\x00-\\x1F\\x7F] {plain}*']
        for character in first:
            rests = {ending[1:] for ending in endings if ending[:1] == character}
            options.append(f"{literal(character)} {self._other_rule(rests, plain)}")
        return f"({_either(options)})" + ("" if "" in endings else "?")

    def _other_rule(self, endings: set[str], plain: str) -> str:
        return self._named_rule(self._other_ending(endings, plain))

    # ---------------------------------------------------------------- arrays

    def _array(self, schema: dict[str, Any]) -> str:
        low, high = _count(schema, "minItems", 0), _count(schema, "maxItems", math.inf)
        first = schema.get("prefixItems", [])
        items = schema.get("items", True)
        asks_for_more = "items" in schema
        if isinstance(items, list):  # the form before JSON Schema 2020-12
            first, items = items, schema.get("additionalItems", True)
            asks_for_more = "additionalItems" in schema
        if low > high:
            raise SchemaError("minItems is above maxItems")
        if schema.get("uniqueItems") and high > 1:
            raise SchemaError("uniqueItems cannot be expressed as a grammar")
        if items is False:
            high = min(high, len(first))
            if low > high:
                raise SchemaError(f"minItems: at most {high} items are possible")
        fixed = [self._rule(part) for part in first[: int(min(high, len(first)))]]
        if first and not asks_for_more and low <= len(first):
            high = len(fixed)
        space = self._use("space")
        comma = self._named_rule(f'{space} "," {space}')
        more = ""
        if high > len(fixed):
            more = self._more_items(items, comma, int(max(low - len(fixed), 0)), high - len(fixed),
                                    is_first=not fixed)  # fmt: skip
        inside = f" {comma} ".join(fixed) + f" {more}" if fixed else more
        if not inside.strip():
            return f'"[" {space} "]"'
        optional = "?" if not fixed and low == 0 else ""
        return f'"[" {space} ({inside} {space}){optional} "]"'

    def _more_items(self, items: Any, comma: str, low: int, high: float, *, is_first: bool) -> str:
        """From `low` to `high` items. With `is_first`, no comma comes before the first of them."""
        item = self._rule(items)
        another = self._named_rule(f"{comma} {item}")
        if is_first:
            return f"{item} {another}{_times(max(low - 1, 0), high - 1)}"
        return f"{another}{_times(low, high)}"

    # ---------------------------------------------------------------- texts and numbers

    def _string(self, schema: dict[str, Any]) -> str:
        given: list[str] = [key for key in ("pattern", "format") if key in schema]
        if "minLength" in schema or "maxLength" in schema:
            given.append("minLength or maxLength")
        if len(given) > 1:
            raise SchemaError(f"{' and '.join(given)} cannot be expressed together")
        if "pattern" in schema:
            return f'"\\"" {self._named_rule(_pattern(schema))} "\\""'
        if "format" in schema:
            name = schema["format"]
            if name not in FORMATS:
                raise SchemaError(f"format must be one of {', '.join(FORMATS)}, not {name!r:.80}")
            return f'"\\"" {self._use(name)} "\\""'
        if not given:
            return self._use("string")
        low, high = _count(schema, "minLength", 0), _count(schema, "maxLength", math.inf)
        if low > high:
            raise SchemaError("minLength is above maxLength")
        return self._named_rule(f'"\\"" {self._use("char")}{_times(int(low), high)} "\\""')

    def _number(self, schema: dict[str, Any]) -> str:
        is_integer = "number" not in _types(schema)
        step = schema.get("multipleOf")
        if step is not None and not (is_integer and step == 1):
            raise SchemaError("multipleOf cannot be expressed as a grammar")
        bounds = OF_TYPE["number"] - {"multipleOf"}
        if not bounds & schema.keys():
            return self._use("integer" if is_integer else "number")
        low, above_low = _bound(schema, "minimum", "exclusiveMinimum", max)
        high, below_high = _bound(schema, "maximum", "exclusiveMaximum", min)
        if is_integer:
            first = None if low is None else math.floor(low) + 1 if above_low else math.ceil(low)
            last = None if high is None else math.ceil(high) - 1 if below_high else math.floor(high)
            _check_order(first, last, is_empty=False)
            return integers(first, last)
        for bound in (low, high):
            if bound is not None and bound != math.floor(bound):
                raise SchemaError("minimum and maximum of a number must be whole numbers")
        first, last = (None if bound is None else int(bound) for bound in (low, high))
        _check_order(first, last, is_empty=above_low or below_high)
        return numbers(first, last, above_low=above_low, below_high=below_high)


def _pattern(schema: Schema) -> str:
    try:
        body = pattern_to_gbnf(_of(str, schema, "pattern"))
        check_cost(parse_gbnf(f"root ::= {body}"))
    except (PatternError, GrammarError) as error:
        raise SchemaError(f"pattern: {error}") from None
    return body


def _either(bodies: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(bodies))


def _times(low: int, high: float) -> str:
    """The operator for `low` to `high` repetitions."""
    if low > MAX_REPETITIONS:
        raise SchemaError(f"minItems and minLength are at most {MAX_REPETITIONS}")
    if high == math.inf:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return f"{{{low},{int(min(high, MAX_REPETITIONS))}}}"


def _types(schema: Schema) -> list[str]:
    """The types that a value may have. "number" includes "integer"."""
    given = schema.get("type")
    types = [given] if isinstance(given, str) else given
    if types is None:
        types = [name for name, keywords in OF_TYPE.items() if keywords & schema.keys()]
        types = types or [name for name in TYPES if name != "integer"]
    if not isinstance(types, list) or not types or any(name not in TYPES for name in types):
        raise SchemaError(f"type must be one or several of {', '.join(TYPES)}")
    return [name for name in types if name != "integer" or "number" not in types]


def _allows(schema: Schema, value: Any) -> bool:
    """Whether the keywords beside an enum allow this value of it."""
    if "type" in schema and not any(_is_of(name, value) for name in _types(schema)):
        return False
    if isinstance(value, str):
        least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", math.inf)
        return least <= len(value) <= most
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above_low = _bound(schema, "minimum", "exclusiveMinimum", max)
        high, below_high = _bound(schema, "maximum", "exclusiveMaximum", min)
        is_above = low is None or (value > low if above_low else value >= low)
        return is_above and (high is None or (value < high if below_high else value <= high))
    return True


def _is_of(name: str, value: Any) -> bool:
    if name in ("number", "integer"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (name == "number" or value == math.floor(value))
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    }  # fmt: skip
    return isinstance(value, kinds[name])


def _bound(
    schema: Schema, included: str, excluded: str, stricter: Callable[..., float]
) -> tuple[float | None, bool]:
    """The stricter of two bounds, and whether it is exclusive."""
    bounds = {}
    for keyword in (included, excluded):
        if keyword in schema:
            bounds[keyword] = schema[keyword]
            is_number = isinstance(schema[keyword], int | float)
            if not is_number or isinstance(schema[keyword], bool):
                raise SchemaError(f"{keyword} must be a number")
            if not abs(schema[keyword]) <= FURTHEST_BOUND:
                raise SchemaError(f"{keyword} is too far from 0")
    if not bounds:
        return None, False
    bound = stricter(bounds.values())
    return bound, bounds.get(excluded) == bound


def _check_order(low: int | None, high: int | None, *, is_empty: bool) -> None:
    """Raise SchemaError if no number is possible. `is_empty`: none is if the bounds are equal."""
    if low is not None and high is not None and (low > high or (is_empty and low == high)):
        raise SchemaError("minimum is above maximum: no number is possible")


def _count(schema: Schema, keyword: str, default: float) -> float:
    value = schema.get(keyword, default)
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if not is_whole or (math.isfinite(value) and value != int(value)):
        raise SchemaError(f"{keyword} must be a whole number of at least 0")
    return float(value) if value == math.inf else int(value)


def _of(kind: type[Any], schema: Schema, keyword: str) -> Any:
    value = schema[keyword]
    if not isinstance(value, kind):
        raise SchemaError(f"{keyword} must be a {kind.__name__}")
    return value


def _list(schema: Schema, keyword: str, of: type = object) -> list[Any]:
    value = schema.get(keyword, [])
    is_list = isinstance(value, list) and all(isinstance(item, of) for item in value)
    if not is_list or (keyword in schema and not value and keyword != "required"):
        raise SchemaError(f"{keyword} must be a list that is not empty")
    return list(value)


def _mapping(schema: Schema, keyword: str) -> dict[str, Any]:
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise SchemaError(f"{keyword} must be an object")
    return dict(value)


def _is_plain(name: str) -> bool:
    """Whether JSON writes the name without escapes."""
    return json.dumps(name, ensure_ascii=False) == f'"{name}"' and "\x7f" not in name


def _in_brackets(character: str) -> str:
    return f"\\U{ord(character):08X}"


def _without_characters(rule: str) -> str:
    """A rule's text without its literals and sets of characters."""
    return re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]', " ", rule)
