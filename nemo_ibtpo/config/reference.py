"""Every configuration key with its type and its meaning, read from the schema.

The docstrings below the schema's fields are the one place that says what a key means; ``nemo-ibtpo train --help``
prints them and error messages quote them. ``tests/unit/config/test_key_reference.py`` checks that no field lacks one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any

from nemo_ibtpo.config.schema import RunConfig


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


def _walk(section: Any, prefix: str) -> Iterator[Key]:
    for name, field in section.__pydantic_fields__.items():
        path = f"{prefix}{name}"
        if is_dataclass(field.annotation):
            yield from _walk(field.annotation, f"{path}.")
        else:
            yield Key(path, field.annotation, " ".join((field.description or "").replace("``", "").split()))
