"""Renders Jinja templates as transformers does, with limits for time and memory.

A template comes with a model file, which may be hostile. Jinja's sandbox keeps the template from
our objects; this module limits its time and memory. Each iteration of a loop, each call and each
filter checks the clock, and the length of a new text is checked before the text is made. A single
operation between two checks (a comparison, a sort) can still take long: see isolated_templates.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import CodeType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE = 2**17
"""Maximum characters of a template."""
MAX_LENGTH = 2**24
"""Maximum characters of a text, or members of a list, that a template makes."""
MAX_MADE = 2**28
"""Maximum characters of all texts that one rendering makes; a list's member counts as MEMBER."""
MEMBER = 16
MAX_ARGUMENT = 10_000
"""Maximum width or count in an argument of a filter."""
MAX_INDENT = 16
"""Maximum indentation of JSON, in characters."""
MAX_BITS = 1024
"""Maximum bits of an integer that a template computes."""
SECONDS = 2.0
"""Time limit of one rendering; usual ones take milliseconds."""


Rewritten = Callable[[Sequence[str], str], str]


class TemplateFailed(Exception):
    """A template cannot be compiled or rendered; the message is a clause such as "it takes…"."""


class TemplateRefused(TemplateFailed):
    """A template has called raise_exception; the message is the template's own."""


class ChatTemplate:
    """A compiled template. Raises TemplateFailed when it is made and when it is rendered."""

    def __init__(self, source: str, seconds: float = SECONDS) -> None:
        if len(source) > MAX_TEMPLATE:
            raise TemplateFailed(f"it has more than {MAX_TEMPLATE} characters")
        self.source = source
        self._seconds = seconds
        environment = _Environment(_Budget(seconds))
        try:
            tree = environment.parse(source)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            """The variables that the template expects."""
            self.words = frozenset(_words(tree))
            """The complete strings that the template may compare with or look up."""
            self._code: CodeType = environment.compile(_Metering().visit(tree))
        except Exception as error:  # an untrusted source may cause any error
            raise TemplateFailed(_clause(error)) from error

    def render(self, variables: Mapping[str, Any], rewritten: Rewritten | None = None) -> str:
        """The text. Raises TemplateRefused if the template calls raise_exception, else
        TemplateFailed.

        `rewritten` is called whenever the template changes a text with `replace`, `upper` or
        similar. It gets the texts before and the text after, and returns the text to use.
        """
        environment = _Environment(_Budget(self._seconds), rewritten)
        template = Template.from_code(environment, self._code, environment.make_globals(None))
        try:
            return environment.concat(
                template.root_render_func(template.new_context(dict(variables)))
            )
        except _Refusal as refusal:
            raise TemplateRefused(str(refusal)) from None
        except Exception as error:  # an untrusted template may raise anything
            raise TemplateFailed(_clause(error)) from error


class _Exceeded(TemplateError):
    """A limit is exceeded."""


class _Refusal(TemplateError):
    """The template has called raise_exception."""


def _clause(error: Exception) -> str:
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


def _words(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.Const, nodes.Getattr)):
        word = node.attr if isinstance(node, nodes.Getattr) else getattr(node, "value", None)
        if isinstance(word, str):
            yield word


class _Budget:
    """The time and memory that one rendering has left."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._left = MAX_MADE

    def step(self) -> None:
        """Check the clock."""
        if time.monotonic() > self._end:
            raise _Exceeded(f"it takes longer than {self._seconds:g} s")

    def fits(self, length: int) -> None:
        """Check the length of a text or list that is about to be made."""
        if length > MAX_LENGTH:
            raise _Exceeded(f"it makes a text or a list longer than {MAX_LENGTH}")

    def made(self, value: Any) -> Any:
        """Count a value that was made."""
        if isinstance(value, (str, list, tuple, dict)):
            self.fits(len(value))
            self._left -= len(value) * (1 if isinstance(value, str) else MEMBER)
            if self._left < 0:
                raise _Exceeded(f"it makes more than {MAX_MADE} characters")
        return value

    def text_length(self, value: Any) -> int:
        """Approximate length of `value` as a text. Counts a text as often as lists contain it."""
        length, open_values = 0, [value]
        while open_values:
            self.step()
            top = open_values.pop()
            if isinstance(top, str):
                length += len(top)
            elif isinstance(top, Mapping):
                open_values += [*top.keys(), *top.values()]
                length += len(top)
            elif isinstance(top, (list, tuple)):
                open_values += top
                length += len(top)
            self.fits(length)
        return length


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of one rendering: its filters, calls and operators use the budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: _Budget, rewritten: Rewritten | None = None) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self._printed,
        )
        self.budget = budget
        self._rewritten = rewritten
        self.concat = self._concat  # type: ignore[method-assign]
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters["tojson"] = _to_json
        self.filters = {
            name: self._metered(name, function)
            for name, function in self.filters.items()
            if name not in _REFUSED_FILTERS
        }
        self.filters[_ROUNDS] = self._rounds
        self.filters[_JOINED] = self._joined

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (int, float, bytes)) or (
            isinstance(obj, str) and attr in _REFUSED_METHODS
        ):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.budget.step()
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        if isinstance(text := getattr(method, "__self__", None), str):
            args = self._measured(method.__name__, (text, *args), kwargs)[1:]
            made = super().call(context, function, *args, **kwargs)
            return self._made(method.__name__, (text, *args), made)
        return self.budget.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if operator == "%" and isinstance(left, str):
            self._measured("format", (left, right), {})
        elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            self.budget.fits(len(left) + len(right))
        elif operator == "*" and isinstance(left, _SIZED) and isinstance(right, int):
            self.budget.fits(len(left) * right)
        elif operator == "*" and isinstance(right, _SIZED) and isinstance(left, int):
            self.budget.fits(len(right) * left)
        elif isinstance(left, int) and isinstance(right, int):
            _check_bits(operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        given = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)  # with what Jinja has noted on it
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            values = self._measured(name, args[given:], kwargs)
            return self._made(name, values, function(*args[:given], *values, **kwargs))

        return metered

    def _made(self, name: str, args: tuple[Any, ...], value: Any) -> Any:
        if self._rewritten is not None and name in _REWRITING and isinstance(value, str):
            value = self._rewritten([str(arg) for arg in args], value)
        return self.budget.made(value)

    def _measured(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """The arguments of a filter or of a string method, after checking the length of what it
        makes of them. The string is the first argument of its method."""
        more = (*args[1:], *kwargs.values())
        if name in _TEXT_FILTERS and args:
            self.budget.text_length(args[0])
        if name in _WIDE_FILTERS and any(type(n) is int and n > MAX_ARGUMENT for n in more):
            raise _Exceeded(f"it gives {name} a number over {MAX_ARGUMENT}")
        if name == "replace" and len(args) > 2:
            text, old, new = map(str, args[:3])
            self.budget.fits(len(text) + text.count(old) * len(new))
        elif name == "indent" and args:
            longest = max((n if isinstance(n, int) else len(str(n)) for n in more), default=4)
            self.budget.fits((str(args[0]).count("\n") + 1) * longest)
        elif name == "sum" and any(
            isinstance(start, _SIZED) and not isinstance(start, str) for start in more
        ):
            raise _Exceeded("it adds up lists")
        elif name == "format" and args:
            self._check_format(str(args[0]), more)
        elif name == "join":
            return self._join_arguments(args, more)
        return args

    def _join_arguments(self, args: tuple[Any, ...], more: tuple[Any, ...]) -> tuple[Any, ...]:
        """The separator is the first argument of the string method, the second of the filter."""
        place = 1 if args and isinstance(args[0], str) and len(args) > 1 else 0
        if len(args) <= place:
            return args
        values = list(self._rounds(args[place]))
        separator = args[1 - place] if len(args) > 1 else next(iter(more), "")
        self.budget.fits(len(values) * len(str(separator)) + self.budget.text_length(values))
        return (*args[:place], values, *args[place + 1 :])

    def _check_format(self, form: str, values: tuple[Any, ...]) -> None:
        if _WIDE_FORMAT.search(form):
            raise _Exceeded("it formats with a width that is too large or not written out")
        places = form.count("{") + form.count("%") + 1
        self.budget.fits(len(form) + places * self.budget.text_length(values))

    def _printed(self, value: Any) -> Any:
        if not isinstance(value, str):
            self.budget.text_length(value)
        return value

    def _concat(self, pieces: Iterable[str]) -> str:
        kept, length = [], 0
        for piece in pieces:
            kept.append(piece)
            length += len(piece)
            self.budget.fits(length)
        return str(self.budget.made("".join(kept)))

    def _rounds(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.step()
            yield value

    def _joined(self, values: list[Any]) -> str:
        self.budget.step()
        self.budget.text_length(values)
        return self._concat(map(str, values))


_ROUNDS = "rounds of a loop"
_JOINED = "joined by ~"
_SIZED = (str, list, tuple)
_REFUSED_FILTERS = frozenset(("center", "pprint", "striptags", "urlize", "wordwrap", "xmlattr"))
_REFUSED_METHODS = frozenset(
    ("center", "encode", "expandtabs", "format_map", "ljust", "maketrans", "rjust", "translate")
) | {"zfill"}
_REWRITING = frozenset(("capitalize", "casefold", "lower", "replace", "swapcase", "title", "upper"))
_WIDE_FILTERS = frozenset(("batch", "indent", "round", "slice"))
_TEXT_FILTERS = frozenset(
    ("capitalize", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe")
) | {"string", "title", "tojson", "trim", "truncate", "upper", "urlencode", "wordcount"}
"""Filters that convert their argument to a text."""
_WIDE_FORMAT = re.compile(r"%(?:\([^()]*\))?[-+ #0-9.]*(?:\d{5}|\*)|\{[^{}]*(?:\d{5}|\{)")


def _check_bits(operator: str, left: int, right: int) -> None:
    bits = {
        "+": max(left.bit_length(), right.bit_length()),
        "*": left.bit_length() + right.bit_length(),
        "**": left.bit_length() * max(right, 0),
        "%": 0,
    }
    if bits[operator] > MAX_BITS:
        raise _Exceeded(f"it computes a number of more than {MAX_BITS} bits")


class _Metering(NodeTransformer):
    """Inserts our filters where Jinja's code calls none: in loops and for `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(_ROUNDS, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_JOINED, nodes.List(node.nodes, lineno=node.lineno))


def _filtered(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """{% generation %} marks what a model wrote, for training; only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as Extension has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: Any) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter.

    `ensure_ascii` is implemented here because MARKS must not be escaped.
    """
    if (len(indent) if isinstance(indent, str) else indent or 0) > MAX_INDENT:
        raise _Exceeded(f"it indents JSON by more than {MAX_INDENT}")
    written = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _BEYOND_ASCII.sub(_escaped, written) if ensure_ascii else written


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0] in MARKS else json.dumps(found[0])[1:-1]


MARKS = "".join(map(chr, range(0x12000, 0x12300)))
"""Cuneiform signs that mark places in texts; see server.chat.control_names. Unlike noncharacters
they are printable, so repr() does not escape them, and no string operation changes them."""
_BEYOND_ASCII = re.compile(r"[^\x00-~]")
