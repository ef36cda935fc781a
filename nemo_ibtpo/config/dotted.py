"""Nested settings by dotted key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def by_dotted_key(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by keys such as ``optimizer.lr``; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= by_dotted_key(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
