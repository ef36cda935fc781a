"""Whether two answers say the same. Symmetric; exact but for a declared tolerance, which is 0 unless asked for."""

from __future__ import annotations

import random
from typing import Any

import sympy

from nemo_ibtpo.rewards.mathematics.reading import Equation, Listing, Quantity, Ratio, Region, Value, Word, as_region

_DIGITS = 60
_MORE_DIGITS = 1_500  # longer than an answer may be: no two different answers agree in so many by their spelling
_POINTS = 6  # values of the variables at which two expressions have to agree


def says_the_same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two values are equal.

    Args:
        a, b: what ``reading.read`` made of the two answers.
        tolerance: relative error that two real numbers may differ by.
    """
    if isinstance(a, Equation) != isinstance(b, Equation):
        equation, other = (a, b) if isinstance(a, Equation) else (b, a)
        return equation.value is not None and says_the_same(equation.value, other, tolerance)
    if isinstance(a, Equation):
        return _equations(a, b, tolerance)
    if isinstance(a, Word) or isinstance(b, Word):
        return _overrides(a, b)
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        return isinstance(a, Ratio) and isinstance(b, Ratio) and _ratios(a, b)
    if isinstance(a, Region) or isinstance(b, Region):
        return _regions(a, b)
    if isinstance(a, Listing) and isinstance(b, Listing):
        return _listings(a, b, tolerance)
    if isinstance(a, Listing) or isinstance(b, Listing):
        listing, other = (a, b) if isinstance(a, Listing) else (b, a)
        single = len(listing.items) == 1 and not listing.ordered
        return single and says_the_same(listing.items[0], other, tolerance)
    return _quantities(a, b, tolerance)


def _overrides(a: Value, b: Value) -> bool:
    if isinstance(a, Word) and isinstance(b, Word):
        return a.text == b.text
    word, other = (a, b) if isinstance(a, Word) else (b, a)
    if not isinstance(word, Word):
        raise TypeError("one of the two must be a word")
    if word.text == "\\emptyset":
        return isinstance(other, Region) and other.numbers.is_empty is True
    # A capital letter may be a name or a variable.
    return isinstance(other, Quantity) and isinstance(other.value, sympy.Symbol) and other.value.name == word.text


def _ratios(a: Ratio, b: Ratio) -> bool:
    if len(a.parts) != len(b.parts):
        return False
    return all(same_number(a.parts[0] * y, b.parts[0] * x) for x, y in zip(a.parts[1:], b.parts[1:], strict=True))


def _regions(a: Value, b: Value) -> bool:
    first, second = as_region(a), as_region(b)
    if first is None or second is None:
        return False
    if first.variable and second.variable and first.variable != second.variable:
        return False
    if first.numbers == second.numbers:
        return True
    mine, others = _ends(first.numbers), _ends(second.numbers)
    return (
        mine is not None
        and others is not None
        and len(mine) == len(others)
        and all(
            p[1:] == q[1:] and (p[0] == q[0] or same_number(p[0], q[0])) for p, q in zip(mine, others, strict=True)
        )
    )


def _ends(numbers: sympy.Set) -> list[tuple[Any, bool, bool]] | None:
    """The ends of the intervals of a set from left to right: the number, whether it is the left one, whether open."""
    parts = list(numbers.args) if isinstance(numbers, sympy.Union) else [numbers]
    if not all(isinstance(part, sympy.Interval) for part in parts):
        return None
    parts.sort(key=lambda part: float(part.start))
    return [end for p in parts for end in ((p.start, True, p.left_open), (p.end, False, p.right_open))]


def _listings(a: Listing, b: Listing, tolerance: float) -> bool:
    if len(a.items) != len(b.items) or a.ordered != b.ordered:
        return False
    if a.ordered:
        same = all(says_the_same(x, y, tolerance) for x, y in zip(a.items, b.items, strict=True))
        return same and (a.brackets == b.brackets or "" in (a.brackets + " ", b.brackets))
    left = list(b.items)
    for item in a.items:
        index = next((i for i, other in enumerate(left) if says_the_same(item, other, tolerance)), None)
        if index is None:
            return False
        del left[index]
    return True


def _equations(a: Equation, b: Equation, tolerance: float) -> bool:
    if a.value is not None and b.value is not None and a.left == b.left:
        return says_the_same(a.value, b.value, tolerance)
    if any(not isinstance(side, sympy.Expr) for side in (a.left, a.right, b.left, b.right)):
        return False
    try:
        first, second = a.left - a.right, b.left - b.right
        factor = sympy.simplify(first / second)
    except Exception:  # sides that cannot be subtracted, such as a matrix and a number
        return False
    return bool(factor.is_number and factor.is_zero is False and factor.is_finite)


def _quantities(a: Quantity, b: Quantity, tolerance: float) -> bool:
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if a.percent != b.percent:
        share, other = (a, b) if a.percent else (b, a)
        if other.unit:
            return False
        if _is_above_one(share.value) and same_number(share.value, other.value, tolerance):
            return True
        return same_number(share.value / 100, other.value, tolerance)
    return same_number(a.value, b.value, tolerance)


def _is_above_one(value: Any) -> bool:
    return bool(getattr(value, "is_number", False) and value.is_extended_real and abs(value) > 1)


def same_number(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two SymPy expressions (or matrices) are equal, whatever their variables are."""
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return (
            isinstance(a, sympy.MatrixBase)
            and isinstance(b, sympy.MatrixBase)
            and a.shape == b.shape
            and all(same_number(x, y, tolerance) for x, y in zip(a, b, strict=True))
        )
    try:
        a, b = a.doit(), b.doit()
    except Exception:  # an integral or a sum that SymPy cannot do
        return False
    if a == b:
        return not a.has(sympy.nan, sympy.zoo)
    if a.is_infinite or b.is_infinite:
        return False
    if a.is_Rational and b.is_Rational:
        return _within(a, b, tolerance)
    symbols = sorted(a.free_symbols | b.free_symbols, key=lambda symbol: symbol.name)
    if not symbols:
        return _within(a, b, tolerance) or (_agree(a, b, _DIGITS) and _agree(a, b, _MORE_DIGITS))
    if a.free_symbols != b.free_symbols and not _is_simplified_away(a, b):
        return False
    return _agree_everywhere(a, b, symbols)


def _within(a: Any, b: Any, tolerance: float) -> bool:
    if not tolerance:
        return False
    x, y = (complex(value.evalf(30)) for value in (a, b))
    return abs(x - y) <= tolerance * max(abs(x), abs(y))


def _agree(a: Any, b: Any, digits: int) -> bool:
    """Whether two constants agree in so many digits, relative to the larger."""
    x, y = (value.evalf(digits, maxn=10 * _MORE_DIGITS) for value in (a, b))
    if not (x.is_number and y.is_number and x.is_finite is not False and y.is_finite is not False):
        return False
    size = max(abs(x), abs(y), key=lambda value: value)
    if size == 0:
        return True
    return bool(abs(x - y) <= size * sympy.Float(10, digits) ** (10 - digits))


def _is_simplified_away(a: Any, b: Any) -> bool:
    return bool(sympy.simplify(a).free_symbols == sympy.simplify(b).free_symbols)


def _agree_everywhere(a: Any, b: Any, symbols: list[sympy.Symbol]) -> bool:
    """Whether two expressions agree at random real values of their variables, negative ones among them.

    Values at which both have no real value are left out; where only one has, they differ.
    """
    draw = random.Random(0)
    agreed = 0
    for trial in range(4 * _POINTS):
        sign = -1 if trial % 2 else 1
        point = {symbol: sign * sympy.Rational(draw.randint(10**6, 4 * 10**6), 999_983) for symbol in symbols}
        x, y = (value.subs(point).evalf(_DIGITS) for value in (a, b))
        real = [value.is_number and value.is_extended_real and value.is_finite for value in (x, y)]
        if not any(real):
            continue
        if not all(real) or not _agree(x, y, _DIGITS - 15):
            return False
        agreed += 1
        if agreed == _POINTS:
            return True
    if agreed < 3:  # functions of whole numbers, complex ones: what SymPy can show
        return bool(sympy.simplify(a - b) == 0)
    return True
