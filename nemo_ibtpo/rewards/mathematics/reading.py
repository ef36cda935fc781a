"""What a mathematical answer says: a number, an expression, a list, a region, an equation, a quantity, a word.

Declared readings, each of them in the table of tests/unit/rewards/math_pairs.py:

- ``1,2`` and ``\\{1,2\\}`` are the same two values in any order; ``(1,2)`` and ``[1,2]`` keep their order and are the
  ends of an interval where the other side is one. Letters and words with commas between keep their order.
- ``100,200`` without a space is the number 100200.
- ``x = 5`` says 5 for any single letter ``x``; both sides with a letter: the same one. ``2+3 = 5`` says 5; ``6 = 5``
  and ``x+y = 12`` say no number.
- ``50\\%`` equals 1/2, and 50 (a number of percent) where it is above 1.
- Digits with a base (``101_2``) equal the same digits in the same base only.
- ``3:30`` is a time of day, equal to itself; other ratios are equal when reduced.
- ``i`` is the imaginary unit, ``e`` Euler's number; ``1e-5`` without a space is 0.00001.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, normalize_latex

from nemo_ibtpo.rewards.mathematics.spelling import is_bracketed, plain, split_top, without_text_macros
from nemo_ibtpo.rewards.mathematics.units import split_unit


@dataclass(frozen=True)
class Word:
    """Something that is no mathematics, equal to the same letters."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """An expression (SymPy) or a matrix, perhaps with a unit or a percent sign."""

    value: Any
    unit: str = ""
    percent: bool = False


@dataclass(frozen=True)
class Listing:
    """Several values. ``brackets`` is one of ``""``, ``"()"``, ``"[]"``, ``"{}"``."""

    items: tuple[Any, ...]
    brackets: str
    ordered: bool


@dataclass(frozen=True)
class Region:
    """A set of numbers; the variable it is a condition on, if it was written as one."""

    numbers: sympy.Set
    variable: str | None = None


@dataclass(frozen=True)
class Equation:
    """``left = right``; ``value`` is what it says of its left side, if that is a letter or a function of letters."""

    left: Any
    right: Any
    value: Any = None


@dataclass(frozen=True)
class Ratio:
    """``a:b``, or more parts."""

    parts: tuple[Any, ...]


Value = Word | Quantity | Listing | Region | Equation | Ratio

_NORMALISE = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
# Its defaults make r of R, and mixed numbers of products.
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_COMMA = re.compile(
    r"\s*[,;]\s*(?:\\text\{\s*)?(?:(?:and|or)\b\s*)?\}?\s*|\s*(?:\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*"
)
_COLON = re.compile(r"\s*:\s*")
_UNION = re.compile(r"\s*\\cup\s*")
_OR = re.compile(r"\s*(?:\\text\{\s*(?:or)\s*\}|\bor\b|\\lor(?![A-Za-z])|\\cup(?![A-Za-z]))\s*")
_RELATION = re.compile(r"\s*(\\leq|\\geq|\\neq|<|>)\s*")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?\s*(?:[ap]\.?\s?m\.?)?", re.IGNORECASE)
_BASED = re.compile(r"\(?([0-9A-Fa-f]+)\)?_\{?\s*(\d{1,2}|\\text\{\w+\})\s*\}?")
_FLOAT = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,3})")
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.]*\.)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_MIXED = re.compile(r"(?<![\d.])(\d+)\s*\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
_PLAIN_MIXED = re.compile(r"([+-]?)(\d+)\s+(\d+)/(\d+)")
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MACRO = re.compile(r"\\[A-Za-z]+")
# Digits apart, text, degrees (which are a unit) and signs without a meaning.
_NO_EXPRESSION = re.compile(r"(?<![_^\d])\d+\s+\d|\\text|\\circ|[?%$#@\"~]")
_FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
    "sqrt",
    "pi",
    "arcsin",
    "arccos",
    "arctan",
}
_VARIABLES = [set("xyz"), set("abcd"), set("pqr"), set("mnk"), set("ijk"), set("uvw"), set("rst")]
_INTERVAL = re.compile(r"([\[(])(.*)([\])])", re.DOTALL)


@lru_cache(maxsize=4096)  # the gold answer comes back with every response to its problem
def read(text: str) -> Value | None:
    """What a text says, None if it is empty."""
    spelled = plain(text)
    return _read(spelled) if spelled else None


def _read(text: str) -> Value:
    for reader in (_matrix, _clock_or_base, _word, _membership, _condition, _equation, _region, _list, _ratio):
        if (value := reader(text)) is not None:
            return value
    return _quantity(text)


def _matrix(text: str) -> Value | None:
    if "\\begin" not in text:
        return None
    text = re.sub(r"\\(begin|end)\{(?:[bBvV]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?", r"\\\1{pmatrix}", text)
    value = expression(text)
    return Word(_letters(text)) if value is None else Quantity(value)


def _clock_or_base(text: str) -> Value | None:
    stripped = without_text_macros(text)
    if _CLOCK.fullmatch(stripped):
        return Word(re.sub(r"[\s.]", "", stripped).casefold().lstrip("0"))
    if (match := _BASED.fullmatch(text)) and not match[1].isalpha():
        base = without_text_macros(match[2])
        return Word(f"{match[1].upper().lstrip('0') or '0'} in base {base}")
    return None


def _word(text: str) -> Value | None:
    """Words: letters that are no expression, ``\\text`` with nothing but letters."""
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Word("\\emptyset")
    inside = without_text_macros(text)
    if match := re.fullmatch(r"\(\s*([A-Za-z])\s*\)", inside):
        return Word(match[1]) if match[1].isupper() else None
    if re.fullmatch(r"[A-Z]", inside):
        return Word(inside)
    if re.fullmatch(r"[^\W\d_][^\d\\=<>+*/^_{}$|]*", inside) and not _is_list_of_letters(inside):
        if "\\text" in text and len(inside) > 1:
            return Word(_letters(text))
        if any(not _is_product(word) for word in _LETTERS.findall(inside)):
            return Word(_letters(text))
    return None


def _is_list_of_letters(text: str) -> bool:
    return re.fullmatch(r"\w+(?:\s*,\s*\w+)+", text) is not None


def _is_product(letters: str) -> bool:
    """Whether letters in a row may be meant as a product of variables."""
    return letters in _FUNCTIONS or (len(letters) <= 3 and any(set(letters) <= names for names in _VARIABLES))


def _membership(text: str) -> Value | None:
    match = re.fullmatch(r"([A-Za-z]|\\[a-z]+)\s*\\in\s*(.+)", text)
    if match is None:
        return None
    inside = _read(match[2].strip())
    if isinstance(inside, Listing) and (region := as_region(inside)) is not None:
        return Region(region.numbers, match[1])
    if isinstance(inside, Region):
        return Region(inside.numbers, match[1])
    return inside if isinstance(inside, Listing) else Word(_letters(text))


def _condition(text: str) -> Value | None:
    """An inequality, or several with "or" between."""
    if len(split_top(text, _RELATION)) == 1:
        return None
    pieces = [_inequality(part.strip()) for part in split_top(text, _OR)]
    if any(piece is None for piece in pieces) or len({piece.variable for piece in pieces if piece}) != 1:
        return Word(_letters(text))
    return Region(
        sympy.Union(*(piece.numbers for piece in pieces if piece)), pieces[0].variable if pieces[0] else None
    )


def _inequality(text: str) -> Region | None:
    sides = split_top(text, _RELATION)
    signs = [match[1] for match in _RELATION.finditer(text)]
    values = [expression(side) for side in sides]
    if not 2 <= len(values) <= 3 or len(signs) != len(values) - 1 or any(value is None for value in values):
        return None
    if len(values) == 2 and isinstance(values[1], sympy.Symbol):
        flipped = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq", "\\neq": "\\neq"}
        values, signs = [values[1], values[0]], [flipped[signs[0]]]
    variable = values[0] if len(values) == 2 else values[1]
    bounds = [value for value in values if value is not variable]
    if not isinstance(variable, sympy.Symbol) or any(bound.free_symbols for bound in bounds):
        return None
    if len(values) == 2:
        return Region(_half_line(signs[0], bounds[0]), variable.name)
    if {signs[0], signs[1]} <= {"<", "\\leq"}:
        low, high, left, right = values[0], values[2], signs[0] == "<", signs[1] == "<"
    elif {signs[0], signs[1]} <= {">", "\\geq"}:
        low, high, left, right = values[2], values[0], signs[1] == ">", signs[0] == ">"
    else:
        return None
    return Region(sympy.Interval(low, high, left, right), variable.name)


def _half_line(sign: str, bound: Any) -> sympy.Set:
    if sign == "\\neq":
        return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(bound))
    if sign in ("<", "\\leq"):
        return sympy.Interval(-sympy.oo, bound, True, sign == "<")
    return sympy.Interval(bound, sympy.oo, sign == ">", True)


def _equation(text: str) -> Value | None:
    sides = [side.strip() for side in split_top(text, _EQUALS)]
    if len(sides) == 1:
        return None
    if len(split_top(text, _COMMA)) > 1:  # x = 1, y = 2
        return None
    values = [_read(side) if side else Word("") for side in sides]
    names_something = re.fullmatch(
        r"(?:[A-Za-z]|\\(?!text)[A-Za-z]+)(?:_\{?\w+\}?)?'?(?:\s*\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\))?", sides[0]
    )
    if names_something and not (isinstance(values[0], Quantity) and sides[0] in ("e", "i", "\\pi")):
        rest = values[1:]
        if all(_says_the_same(rest[0], other) for other in rest[1:]) and sides[0] not in _symbols(rest[-1]):
            return Equation(expression(sides[0]), getattr(rest[-1], "value", None), rest[-1])
    if all(isinstance(value, Quantity) and not value.value.free_symbols for value in values):
        return values[-1] if all(_says_the_same(values[0], other) for other in values[1:]) else Word(_letters(text))
    if len(values) == 2 and all(isinstance(value, Quantity) and not value.unit for value in values):
        return Equation(values[0].value, values[1].value)  # type: ignore[union-attr]
    return Word(_letters(text))


def _says_the_same(a: Value, b: Value) -> bool:
    from nemo_ibtpo.rewards.mathematics.equality import says_the_same  # each needs the other

    return says_the_same(a, b)


def _symbols(value: Any) -> set[str]:
    return {symbol.name for symbol in value.value.free_symbols} if isinstance(value, Quantity) else set()


def _region(text: str) -> Value | None:
    """Unions of intervals, half-open intervals, the real numbers."""
    if match := re.fullmatch(r"(.+?)\s*(?:\\setminus|\\backslash)\s*(.+)", text):
        whole, without = (_read(part.strip()) for part in match.groups())
        if (a := as_region(whole)) is not None and isinstance(without, Listing):
            numbers = [item.value for item in without.items if isinstance(item, Quantity)]
            return Region(sympy.Complement(a.numbers, sympy.FiniteSet(*numbers)))
        return Word(_letters(text))
    if text in ("\\mathbb{R}", "\\text{R}"):
        return Region(sympy.S.Reals)
    parts = [part.strip() for part in split_top(text, _UNION)]
    if len(parts) > 1:
        regions = [as_region(_read(part)) for part in parts]
        if any(region is None for region in regions):
            return Word(_letters(text))
        return Region(sympy.Union(*(region.numbers for region in regions if region is not None)))
    match = _INTERVAL.fullmatch(text)
    if match and match[1] + match[3] in ("[)", "(]"):
        ends = [expression(part) for part in split_top(match[2], re.compile(r"\s*[,;]\s*"))]
        if len(ends) == 2 and not any(end is None or end.free_symbols for end in ends):
            return Region(sympy.Interval(ends[0], ends[1], match[1] == "(", match[3] == ")"))
        return Word(_letters(text))
    return None


def as_region(value: Any) -> Region | None:
    """A region, or a pair in brackets read as an interval."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Listing) and value.brackets == "{}":
        numbers = [item.value for item in value.items if isinstance(item, Quantity) and not item.value.free_symbols]
        return Region(sympy.FiniteSet(*numbers)) if len(numbers) == len(value.items) else None
    if isinstance(value, Listing) and value.brackets in ("()", "[]") and len(value.items) == 2:
        ends = [item.value for item in value.items if isinstance(item, Quantity) and not item.unit]
        if len(ends) == 2 and all(_is_real(end) for end in ends):
            is_open = value.brackets == "()"
            return Region(sympy.Interval(ends[0], ends[1], is_open, is_open))
    return None


def _is_real(end: Any) -> bool:
    return isinstance(end, sympy.Expr) and not end.free_symbols and end.is_extended_real is True


def _list(text: str) -> Value | None:
    brackets = ""
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("\\langle", "\\rangle")):
        if text.startswith(opening) and text.endswith(closing) and (opening == "\\langle" or is_bracketed(text)):
            inside = text[len(opening) : -len(closing)].strip()
            brackets = "()" if opening == "\\langle" else opening[-1] + closing[-1]
            break
    else:
        inside = text
    if inside.startswith("\\text{(") and re.fullmatch(r"\\text\{\([A-Za-z]\)\}", inside):
        return None
    parts = [part.strip() for part in split_top(inside, _COMMA)]
    if brackets == "{}" and (":" in inside or "\\mid" in inside or "|" in inside):
        return Word(_letters(text))
    if len(parts) == 1 and brackets != "{}":
        return _plus_minus(text)
    if not all(parts):
        return Word(_letters(text))
    items = tuple(item for part in parts for item in _values(part, brackets))
    in_words = any(isinstance(item, Word) for item in items)
    return Listing(items, brackets, brackets in ("()", "[]") or (in_words and brackets == ""))


def _values(text: str, brackets: str) -> tuple[Any, ...]:
    """What a part of a list stands for: with a plus-minus two values, where order does not matter."""
    value = _read(text)
    both = isinstance(value, Listing) and not value.ordered and value.brackets == "" and brackets in ("", "{}")
    return value.items if both else (value,)  # type: ignore[union-attr]


def _plus_minus(text: str) -> Value | None:
    if "\\pm" not in text and "\\mp" not in text:
        return None
    signs = re.compile(r"\\([pm])[pm](?![A-Za-z])")
    upper = signs.sub(lambda match: "+" if match[1] == "p" else "-", text)
    lower = signs.sub(lambda match: "-" if match[1] == "p" else "+", text)
    items = (_read(upper.removeprefix("+").strip()), _read(lower.removeprefix("+").strip()))
    return Listing(items, "", False)


def _ratio(text: str) -> Value | None:
    parts = [part.strip() for part in split_top(text, _COLON)]
    if len(parts) == 1:
        return None
    values = [expression(part) for part in parts]
    if any(value is None for value in values):
        return Word(_letters(text))
    return Ratio(tuple(values))


def _quantity(text: str) -> Value:
    value = expression(text)
    if value is not None:
        return Quantity(value)
    number, factor, unit, percent = split_unit(text)
    if number and (value := expression(number)) is not None:
        return Quantity(value * factor, unit, percent)
    return Word(_letters(text))


def _letters(text: str) -> str:
    """A text as it is compared: case counts where there is anything but words."""
    inside = re.sub(r"\s*([^\w\s])\s*", r"\1", without_text_macros(text))
    return inside.casefold() if re.fullmatch(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*", inside) else inside


def expression(text: str) -> Any:
    """A SymPy expression or matrix, None if a text is not one for sure. Decimals are exact."""
    text = text.strip()
    if match := _FLOAT.fullmatch(text):
        return sympy.Rational(text)
    if match := _PLAIN_MIXED.fullmatch(text):
        sign, whole, above, below = match.groups()
        if int(below):
            return (-1 if sign == "-" else 1) * (int(whole) + sympy.Rational(int(above), int(below)))
    if not text or _NO_EXPRESSION.search(text) or ("&" in text and "\\begin" not in text):
        return None
    beside_macros = _MACRO.sub(" ", re.sub(r"\\(?:begin|end)\{\w+\}", " ", text))
    pairs_are_products = re.search(r"[\d+\-*/^=(&]", beside_macros) is not None  # ax+b; but no is no product
    for letters in _LETTERS.findall(beside_macros):
        if not (_is_product(letters) or (pairs_are_products and len(letters) == 2)):
            return None
    text = re.sub(r"(?<!\\)\b(sqrt|pi|sin|cos|tan|log|ln|exp)\b", r"\\\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = _REPEATING.sub(_repeating, text)
    text = _DECIMAL.sub(lambda m: _fraction(int((m[1] or "0") + m[2]), 10 ** len(m[2]), m), text)
    text = _MIXED.sub(lambda m: f"({m[1]}+\\frac{{{m[2] or m[3]}}}{{{m[4] or m[5]}}})", text)
    text = re.sub(r"(?<=\d)\s*\(", r"\\cdot (", text)  # without the dot, the grammar makes 2 + 3 of 2(3)
    try:
        found = latex2sympy(
            normalize_latex(text, config=_NORMALISE),
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except Exception:  # whatever the grammar raises
        return None
    return _exact(found)


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3]
    low = 10 ** len(fixed)
    value = sympy.Rational(int(whole + fixed), low) + sympy.Rational(int(repeated), low * (10 ** len(repeated) - 1))
    return _fraction(value.p, value.q, match)


def _fraction(above: int, below: int, match: re.Match[str]) -> str:
    opening, closing = "{}" if match.string[: match.start()].endswith("^") else "()"
    return f"{opening}\\frac{{{above}}}{{{below}}}{closing}"


def _exact(found: Any) -> Any:
    if isinstance(found, sympy.MatrixBase):
        entries = [_exact(entry) for entry in found]
        return None if any(entry is None for entry in entries) else sympy.ImmutableMatrix(*found.shape, entries)
    if not isinstance(found, sympy.Expr) or found.has(sympy.nan, sympy.zoo):
        return None
    found = found.subs(sympy.Symbol("i", real=True), sympy.I)
    return None if found.has(sympy.Float) else found


expression("\\frac{1}{2}")  # the grammar's tables are built at their first use, longer than a verification
