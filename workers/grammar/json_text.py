"""Rules for JSON values, in GBNF.

White space and digits are bounded, because a model might repeat them until its tokens are used up.
Strings, arrays and objects are not bounded.
"""

from __future__ import annotations

MAX_DIGITS = 16
"""The most digits of a number's integer part, unless a schema has bounds with more digits."""
DIGITS = "[0-9]"
FRACTION = '"." [0-9]{1,15}'

RULES = {
    "space": r'(" " | "\n" [ \t]{0,20})?',
    "hex": "[0-9a-fA-F]",
    # Surrogates are left out, because a single one is not a character.
    "escape": r'"\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex hex hex | [dD] [0-7] hex hex))',
    "char": r'[^"\\\x00-\x1F\x7F] | escape',
    "string": r'"\"" char* "\""',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{MAX_DIGITS - 1}}})',
    "number": f"integer ({FRACTION})? ([eE] [-+]? [0-9]{{1,2}})?",
    "value": "object | array | string | number | boolean | null",
    "member": 'string space ":" space value',
    "object": '"{" space (member (space "," space member)* space)? "}"',
    "array": '"[" space (value (space "," space value)* space)? "]"',
    "year": "[12] [0-9]{3}",
    "leap": '[12] [0-9] ("0" [48] | [2468] [048] | [13579] [26])',
    "day": '"0" [1-9] | [12] [0-9]',
    "date": (
        'year "-" ("0" [13578] | "1" [02]) "-" (day | "3" [01])'
        ' | year "-" ("0" [469] | "11") "-" (day | "30")'
        ' | year "-02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]) | leap "-02-29"'
    ),
    "clock": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]',
    "time": 'clock ":" [0-5] [0-9] ("." [0-9]{1,6})? ("Z" | [-+] clock)',
    "date-time": 'date "T" time',
    "amount": "[0-9]{1,4}",
    "duration": ('"P" (amount "D" ("T" duration-time)? | "T" duration-time)'),
    "duration-time": (
        'amount "H" (amount "M" (amount "S")?)? | amount "M" (amount "S")? | amount "S"'
    ),
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
    "octet": '"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9] [0-9] | [0-9]',
    "ipv4": 'octet "." octet "." octet "." octet',
    "ipv6": '(hex{1,4} ":"){7} hex{1,4}',
    "label": '[a-z0-9]{1,20} ("-" [a-z0-9]{1,20})?',
    "hostname": 'label ("." label){0,5}',
    "email": '[A-Za-z0-9_+-]{1,30} ("." [A-Za-z0-9_+-]{1,30})? "@" label ("." label){1,4}',
    "uri": '"http" "s"? "://" hostname ("/" [A-Za-z0-9_.~-]{0,60}){0,8}',
}
"""The rules by name. A rule may use others."""
FORMATS = (
    "date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "hostname", "email", "uri",
)  # fmt: skip

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(text: str) -> str:
    """A literal that matches exactly this text."""
    return '"' + "".join(_ESCAPES.get(c, c if c >= " " else f"\\x{ord(c):02X}") for c in text) + '"'


def integers(low: int | None, high: int | None) -> str:
    """Integers from `low` to `high`, both included. None: limited by the number of digits only.

    `low` must not exceed `high`.
    """
    low, high = _limited(low, high)
    alternatives = []
    if low < 0:
        alternatives += [f'"-" ({part})' for part in _magnitudes(max(1, -high), -low)]
    if high >= 0:
        alternatives += _magnitudes(max(0, low), high)
    return " | ".join(alternatives)


def numbers(
    low: int | None, high: int | None, *, above_low: bool = False, below_high: bool = False
) -> str:
    """Numbers from `low` to `high`. `above_low` excludes `low`, `below_high` excludes `high`."""
    low, high = _limited(low, high)
    alternatives = []
    if low < 0:
        negative = _fractions(max(0, -high), -low, high <= 0 and below_high, above_low)
        alternatives += [f'"-" ({part})' for part in negative]
    if high >= 0:
        alternatives += _fractions(max(0, low), high, low >= 0 and above_low, below_high)
    return " | ".join(alternatives)


def _limited(low: int | None, high: int | None) -> tuple[int, int]:
    """The bounds. A missing one becomes the furthest number with as many digits as allowed."""
    given = [len(str(abs(bound))) for bound in (low, high) if bound is not None]
    digits = max(MAX_DIGITS, *given) if given else MAX_DIGITS
    furthest: int = 10**digits - 1
    return -furthest if low is None else low, furthest if high is None else high


def _fractions(low: int, high: int, above_low: bool, below_high: bool) -> list[str]:
    """Alternatives for the numbers from `low` ≥ 0 to `high`, which may be excluded themselves."""
    alternatives = []
    if low < high:
        first = low + 1 if above_low else low
        if above_low:
            alternatives.append(f'"{low}." [0-9]{{0,14}} [1-9]')
        if first < high:
            alternatives += [f"({part}) ({FRACTION})?" for part in _magnitudes(first, high - 1)]
    if not below_high and not (above_low and low == high):
        alternatives.append(f'"{high}" ("." "0"{{1,15}})?')
    return alternatives


def _magnitudes(low: int, high: int) -> list[str]:
    """Alternatives for the integers from `low` ≥ 0 to `high`, by their number of digits."""
    alternatives = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        alternatives += _of_one_length(str(first), str(last))
    return alternatives


def _of_one_length(low: str, high: str) -> list[str]:
    """Alternatives for the integers from `low` to `high`, which have equally many digits."""
    if low == high:
        return [f'"{low}"']
    rest = len(low) - 1
    if not rest:
        return [_digits(low, high)]
    if low[0] == high[0]:
        return [f'"{low[0]}" ({" | ".join(_of_one_length(low[1:], high[1:]))})']
    first, last = int(low[0]), int(high[0])
    alternatives = []
    if low[1:] != "0" * rest:
        alternatives.append(f'"{first}" ({" | ".join(_of_one_length(low[1:], "9" * rest))})')
        first += 1
    if high[1:] != "9" * rest:
        alternatives.append(f'"{last}" ({" | ".join(_of_one_length("0" * rest, high[1:]))})')
        last -= 1
    if first <= last:
        alternatives.append(f"{_digits(str(first), str(last))} {DIGITS}{{{rest}}}")
    return alternatives


def _digits(low: str, high: str) -> str:
    return f"[{low}-{high}]"
