"""Spellings of LaTeX that make no difference to what an answer says are replaced by one of them."""

from __future__ import annotations

import re

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\uff0d": "-", "\u00d7": "\\times ", "\u00f7": "/", "\u00b7": "\\cdot ",
        "\u22c5": "\\cdot ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u00b0": "^\\circ ", "\u2264": "\\leq ",
        "\u2265": "\\geq ", "\u2260": "\\neq ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ",
        "\u00b1": "\\pm ", "\u2213": "\\mp ", "\u2205": "\\emptyset ", "\u211d": "\\mathbb{R}",
        "\u00b2": "^{2}", "\u00b3": "^{3}",
        "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}", "\u2044": "/", "\u00a0": " ",
        "\u202f": " ", "\u2009": " ", "\uff0c": ",", "\u20ac": "\\euro ", "\u00a3": "\\pounds ", "\u03b8": "\\theta ",
        "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u2220": "\\angle ", "\u25b3": "\\triangle ",
    }
)  # fmt: skip
_ROOT = re.compile("\u221a\\s*(\\d+|[A-Za-z]|\\([^()]*\\))")
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\.?")
_SPACES = re.compile(
    r"(?<!\\)\\(?:[,;:!> ]|q?quad\b|displaystyle\b|textstyle\b|limits\b|hspace\{[^{}]*\}|phantom\{[^{}]*\})|~"
)
_FONTS = re.compile(r"\\(?:mathbf|mathit|boldsymbol|bm|mathsf|mathcal|textcolor\{\w+\}|color\{\w+\})\s*\{([^{}]*)\}")
_TEXTS = re.compile(r"\\(?:textbf|textit|textrm|textsf|texttt|mbox|hbox|mathrm|operatorname\*?|rm)\s*\{([^{}]*)\}")
_OLD_FONT = re.compile(r"\{?\\(?:rm|bf|it)\s+([^{}]*)\}?")
_BOX = re.compile(r"^\\f?boxed\s*\{(.*)\}$", re.DOTALL)
_SAME = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:le|leqslant|leqq)(?![A-Za-z])"), r"\\leq"),
    (re.compile(r"\\(?:ge|geqslant|geqq)(?![A-Za-z])"), r"\\geq"),
    (re.compile(r"\\ne(?![A-Za-z])"), r"\\neq"),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\\(?:colon|ratio)(?![A-Za-z])"), ":"),
    (re.compile(r"\\cup(?![A-Za-z])"), r"\\cup "),
    (re.compile(r"\\(?:lparen)(?![A-Za-z])"), "("),
    (re.compile(r"\\(?:rparen)(?![A-Za-z])"), ")"),
    (re.compile(r"\\(?:imath)(?![A-Za-z])"), "i"),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:emptyset|infty)(?=[A-Za-z])"), r"\g<0> "),
)
# 1{,}234  1\,234  1,234  12 345: at least one whole group of three after one to three digits
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?:\{,\}\d{3})+|(?:,\d{3})+|(?:\\,\d{3})+|(?: \d{3})+)(?![\d,]|\{,\})")


def plain(text: str) -> str:
    """The text in plain spelling: without outer dollars, boxes, sizes, fonts and spaces that LaTeX adds."""
    text = _ROOT.sub(r"\\sqrt{\1}", text.translate(_UNICODE)).strip()
    text = re.sub(r"\\\\$", "", text).strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(opening) : -len(closing)]
        is_enclosed = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing)
        if is_enclosed and opening not in inside and not inside.endswith("\\"):
            text = inside.strip()
    if box := _BOX.match(text):
        text = box[1].strip()
    text = re.sub(r"\\text\{\s*\$([^$]*)\$\s*\}", r"\1", _SIZES.sub("", text))
    text = re.sub(r"\\!\s*", "", text)
    text = _GROUPED.sub(_without_groups, text)
    text = _SPACES.sub(" ", text)
    for _ in range(2):  # fonts nest
        text = _TEXTS.sub(r"\\text{\1}", _FONTS.sub(r"\1", text))
        text = re.sub(r"\\text\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1}", text)
    text = _OLD_FONT.sub(r"\\text{\1}", text)
    for pattern, replacement in _SAME:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}", text)
    text = re.sub(r"\s+", " ", text).strip()
    if text.endswith((".", ",", ";")) and not text.endswith(("..", "\\,", "\\;")):
        text = text[:-1].rstrip()
    return text


def without_text_macros(text: str) -> str:
    r"""``\text{...}`` replaced by what it holds."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)).strip()


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of a text between separators that stand outside all brackets and groups."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)):
            parts.append(text[start:position])
            start = position = match.end()
            continue
        if text[position] == "\\":
            macro = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL).match(text, position)
            word = macro[0] if macro else "\\"
            depth += (word in ("\\{", "\\langle", "\\begin")) - (word in ("\\}", "\\rangle", "\\end"))
            position += len(word)
            continue
        depth += (text[position] in "([{") - (text[position] in ")]}")
        position += 1
    return [*parts, text[start:]]


def is_bracketed(text: str) -> bool:
    """Whether the first bracket of a text closes with its last character."""
    depth = 0
    tokens = list(re.finditer(r"\\[{}]|[()\[\]{}]", text))
    for token in tokens:
        depth += 1 if token[0] in ("\\{", "(", "[", "{") else -1
        if depth == 0:
            return token.end() == len(text) and tokens[0].start() == 0
    return False


def _without_groups(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"\D", "", match[2])
