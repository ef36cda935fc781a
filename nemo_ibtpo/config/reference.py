"""Every configuration key with its type and its meaning, read from the schema.

The schema's docstrings are the one place that says what a key means; ``nemo-ibtpo train --help`` prints them
and error messages quote them. ``tests/unit/config/test_key_reference.py`` holds that no field lacks its sentence.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from nemo_ibtpo.config.schema import RunConfig

_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*?)(?=^    \w|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Key:
    """One leaf of the configuration.

    Attributes:
        path: dotted name, such as ``actor.tensor_model_parallel_size``.
        type: resolved type hint.
        doc: what it means, one line.
    """

    path: str
    type: Any
    doc: str


@cache
def keys(root: type = RunConfig) -> dict[str, Key]:
    """All leaves of a configuration by their dotted name, in the order of the schema."""
    return {key.path: key for key in _walk(root, "")}


@cache
def sections(root: type = RunConfig) -> frozenset[str]:
    """Dotted names of the nested dataclasses, such as ``data.train``."""
    parts = (path.split(".")[:-1] for path in keys(root))
    return frozenset(".".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1))


def field_types(section: type) -> dict[str, Any]:
    """Field names of a schema dataclass with their resolved types."""
    return typing.get_type_hints(section)


def _walk(section: type, prefix: str) -> Iterator[Key]:
    docs = _attribute_docs(section)
    types = field_types(section)
    for field in fields(section):
        path = f"{prefix}{field.name}"
        if is_dataclass(types[field.name]):
            yield from _walk(types[field.name], f"{path}.")
        else:
            yield Key(path, types[field.name], docs.get(field.name, ""))


def _attribute_docs(section: type) -> dict[str, str]:
    """Sentences of a Google-style ``Attributes:`` block by field name."""
    _, _, block = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    docs = {}
    for entry in _ENTRY.finditer(block):
        text = " ".join(entry["text"].replace("``", "").split())
        docs.update(dict.fromkeys(entry["names"].split(", "), text))
    return docs
