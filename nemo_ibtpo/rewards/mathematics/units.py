"""Units, currencies, percent signs and factors in words that stand beside a number."""

from __future__ import annotations

import re

from nemo_ibtpo.rewards.mathematics.spelling import without_text_macros

_FACTORS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_SAME_UNIT = {
    "mm": "millimeter cm:centimeter m:meter km:kilometer in:inch inches:inch ft:foot feet:foot yd:yard mi:mile",
    "g": "gram kg:kilogram mg:milligram lb:pound lbs:pound oz:ounce",
    "s": "second sec:second secs:second min:minute mins:minute h:hour hr:hour hrs:hour",
    "l": "liter L:liter ml:milliliter mL:milliliter",
}
_NAMES: dict[str, str] = {}
for _first, _others in _SAME_UNIT.items():
    _name, *_pairs = _others.split()
    _NAMES[_first] = _name
    _NAMES |= dict(pair.split(":") for pair in _pairs)
_MONEY = (("\\$", "dollar"), ("$", "dollar"), ("\\euro", "euro"), ("\\pounds", "pound sterling"))
_PERCENT = re.compile(r"^(.*?)\s*(?:\\?%|\bpercent|\bper cent)$", re.IGNORECASE | re.DOTALL)
_DEGREES = re.compile(r"^([^A-Za-z]*|[^A-Za-z]*\\(?:frac|pi|sqrt)[^A-Za-z]*)\s*(?:\^\\circ|degrees?)$", re.DOTALL)
_UNIT = re.compile(r"^(?P<number>.*[\d)}!])\s*(?P<unit>[A-Za-z].*)$", re.DOTALL)
_NO_UNIT = {
    "or",
    "and",
    "so",
    "not",
    "is",
    "are",
    "to",
    "about",
    "approximately",
    "wrong",
    "if",
    "when",
    "but",
    "no",
    "of",
}
_POWER = re.compile(r"\^\{?(-?\d)\}?")


def split_unit(text: str) -> tuple[str, int, str, bool]:
    """The number of a text, the factor and the unit after (or the currency before) it, and whether it is in percent.

    The number is empty if the text is no number with something beside it.
    """
    for sign, unit in _MONEY:
        if text.startswith(sign):
            number, factor, rest, percent = split_unit(f"{text.removeprefix(sign).strip()}\\text{{}}")
            return number, factor, unit if not rest or rest == unit else f"{unit} {rest}", percent
    if match := _PERCENT.match(without_text_macros(text)):
        return match[1], 1, "", True
    if match := _DEGREES.match(without_text_macros(text)):
        return match[1], 1, "degree", False
    if "\\text" in text:
        number, _, rest = text.partition("\\text")
        words = without_text_macros("\\text" + rest)
    elif match := _UNIT.match(text):
        number, words = match["number"], match["unit"]
        if not re.fullmatch(r"[A-Za-z]{2,}(?:\^\{?\d\}?)?(?:[\s/]+[A-Za-z]{1,}(?:\^\{?\d\}?)?)*", words):
            return "", 1, "", False
    else:
        return "", 1, "", False
    factor = 1
    names = words.split()
    if len(names) > 4 or _NO_UNIT & {name.casefold() for name in names}:
        return "", 1, "", False
    while names and names[0].casefold() in _FACTORS:
        factor *= _FACTORS[names.pop(0).casefold()]
    return number.strip(), factor, _unit_name(" ".join(names)), False


def _unit_name(unit: str) -> str:
    unit = re.sub(r"\s*\^", "^", _POWER.sub(r"^\1", unit.replace("\\cdot", " ").strip()))
    names = []
    power = ""
    for name in re.sub(r"\s*/\s*", " per ", unit).split():
        if name.casefold() in ("square", "sq", "sq."):
            power = "^2"
        elif name.casefold() in ("cubic", "cu", "cu."):
            power = "^3"
        else:
            base, _, own = name.partition("^")
            base = _NAMES.get(base, base if len(base) <= 2 else base.casefold())
            if len(base) > 3 and base.endswith("s") and not base.endswith("ss"):
                base = base[:-1]
            base = _NAMES.get(base, base)
            names.append(f"{base}{f'^{own}' if own else power}")
            power = ""
    return " ".join(names)
