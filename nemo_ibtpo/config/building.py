"""Composed values become a dataclass of the schema, or one line that says which key is wrong, where it was written,
and what would be right.

Pydantic checks; this module puts its findings into words.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.paths import conf_dir, did_you_mean
from nemo_ibtpo.config.reference import keys, sections

# By pydantic's type of an error, in the form of its context.
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a quoted text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "string_too_short": "a text that is not empty",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
}
_QUOTED = re.compile("'([^']*)'")
_UNKNOWN, _MISSING = "unexpected_keyword_argument", "missing"


class Sources:
    """Tells where the value of a key was written.

    Args:
        recipe: the primary config.
        written: what its file holds.
        overrides: ``key=value`` of the command line.
    """

    def __init__(self, recipe: Path, written: Mapping[str, Any], overrides: typing.Sequence[str]) -> None:
        self.recipe = recipe
        self._written = written
        self._overridden = {word.lstrip("+").partition("=")[0] for word in overrides}

    def of(self, key: str) -> str:
        """The place, as it ends a phrase: ``in <file>`` or ``on the command line``."""
        if self._is_word(key):
            return "on the command line"
        return f"in {self.recipe}" if self._is_in_recipe(key) else f"in the defaults under {conf_dir()}"

    def is_written(self, key: str) -> bool:
        """Whether the recipe's file itself or the command line gives the key."""
        return self._is_word(key) or self._is_in_recipe(key)

    def _is_word(self, key: str) -> bool:
        names = key.split(".")
        return any(".".join(names[: depth + 1]) in self._overridden for depth in range(len(names)))

    def _is_in_recipe(self, key: str) -> bool:
        node: Any = self._written
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return False
            node = node[name]
        return True


def build(root: type, raw: Mapping[str, Any], sources: Sources, prefix: str = "") -> Any:
    """Build a dataclass of the schema from plain values.

    Args:
        root: the dataclass.
        raw: its values by name, sections as mappings.
        sources: where they were written.
        prefix: what comes before the dataclass's own keys, such as ``exp_manager.``.

    Raises:
        UserError: for the first thing that is wrong; unknown keys come first, then missing ones, then values.
    """

    def refuse(value: object) -> typing.NoReturn:
        raise UserError(f"{sources.recipe}: {value!r} is no number, text, list or mapping")

    try:
        # As JSON, which strict types take mappings from; numbers survive it exactly.
        return TypeAdapter(root).validate_json(json.dumps(raw, default=refuse))
    except ValidationError as error:
        rank = {_UNKNOWN: 0, _MISSING: 1}
        first = min(error.errors(include_url=False), key=lambda found: rank.get(found["type"], 2))
        raise UserError(_line(first, root, raw, sources, prefix)) from None


def meaning(root: type, key: str) -> str:
    """The key's sentence in parentheses, or nothing for a key that is unknown."""
    doc = keys(root)[key].doc.rstrip(".") if key in keys(root) else ""
    if not doc[1:2].isupper():  # an abbreviation keeps its capitals
        doc = doc[:1].lower() + doc[1:]
    return f" ({doc})" if doc else ""


def at(node: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings."""
    for name in key.split("."):
        node = node[name]
    return node


def _line(error: ErrorDetails, root: type, raw: Mapping[str, Any], sources: Sources, prefix: str) -> str:
    key = ".".join(part for part in error["loc"] if isinstance(part, str))
    full, kind = f"{prefix}{key}", error["type"]
    if kind == _UNKNOWN:
        known = [f"{prefix}{name}" for name in (*keys(root), *sections(root))]
        return f"unknown key '{full}' {sources.of(full)}{did_you_mean(full, known)}"
    if kind == _MISSING:
        start = "; does the recipe's defaults list start with `config`?" if "." not in full else ""
        return f"{full} is missing{meaning(root, key)}{start}"
    value = at(raw, key)
    if kind == "dataclass_type":
        return f"{full} {sources.of(full)} is a section of keys, not {value!r}"
    context = error.get("ctx", {})
    if kind == "literal_error":
        expected = "one of " + ", ".join(_QUOTED.findall(context["expected"]))
    else:
        expected = _EXPECTED[kind].format(**context)
    if isinstance(error["loc"][-1], int):
        expected = f"a list, each item {expected}"
    if type(None) in typing.get_args(keys(root)[key].type):
        expected += " or null"
    shown = json.dumps(value, ensure_ascii=False)
    return f"{full}={shown} {sources.of(full)}: expected {expected}{meaning(root, key)}"
