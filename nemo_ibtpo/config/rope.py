"""Rotary positions as a model's ``config.json`` asks for them.

transformers 4 writes ``rope_scaling`` beside ``rope_theta``, transformers 5 ``rope_parameters``; both are read.

With most types a position is rotated alike in every sequence. Not so with ``dynamic`` and ``longrope``, whose
frequencies transformers takes from the length of the sequence at hand. In a tree a shared prefix belongs to sequences
of several lengths, and a cached key was rotated when its sequence was shorter. So a run has one length, that of its
longest trajectory, and every sequence is rotated as transformers rotates one of that length (:func:`at_length`).

Needs no torch: the checks before a run ask here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What a type cannot do without.
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of a ``config.json`` in the spelling of transformers 5, without nulls."""
    rope = _renamed(config.get("rope_scaling") or config.get("rope_parameters") or {})
    for name in ("rope_theta", "partial_rotary_factor"):
        if config.get(name) is not None:
            rope.setdefault(name, config[name])
    if (original := config.get("original_max_position_embeddings")) is not None:
        rope["original_max_position_embeddings"] = original  # which transformers heeds before the one inside
    return {"rope_type": "default"} | rope


def _renamed(written: Mapping[str, Any]) -> dict[str, Any]:
    rope = {name: value for name, value in written.items() if value is not None}
    return {"rope_type": rope.pop("type")} | rope if "type" in rope else rope


def unsupported_rope(config: Mapping[str, Any]) -> str | None:
    """The first thing that the rotary parameters ask for and no part of a run does; None if there is none."""
    rope = rope_parameters(config)
    if nested := sorted(name for name, value in rope.items() if isinstance(value, Mapping)):
        return f"rotary parameters for each kind of layer ({', '.join(nested)}) are not supported"
    older = _renamed({"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})})
    newer = _renamed(config.get("rope_parameters") or {})
    for name in sorted(older.keys() & newer.keys()):
        if older[name] != newer[name]:
            return (
                f"{name} is {older[name]} in the spelling of transformers 4 (rope_scaling, rope_theta), "
                f"{newer[name]} in that of transformers 5 (rope_parameters); change one"
            )
    if (kind := rope["rope_type"]) not in _NEEDED:
        return f"rope_type '{kind}' is not supported; supported are {', '.join(_NEEDED)}"
    if missing := [name for name in _NEEDED[kind] if name not in rope]:
        return f"rope_type '{kind}' needs {' and '.join(missing)}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported, only 1"
    factor, half = rope.get("factor", 1.0), _head_dim(config) // 2
    if not isinstance(factor, int | float) or factor < 1:
        return f"rope_type '{kind}' with factor={factor}: it must be a number of at least 1"
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        if not isinstance(rope[name], list) or len(rope[name]) != half:
            return f"rope_type 'longrope': {name} must be a list of {half} numbers, half as many as a head's channels"
    return None


def positions(config: Mapping[str, Any]) -> int:
    """Tokens of the longest sequence that a model is made for.

    ``max_position_embeddings`` is what a model was trained on with ``linear`` and ``dynamic``, which reach ``factor``
    times as far. With ``yarn`` it may be either; what the model was trained on is
    ``original_max_position_embeddings``. Elsewhere it is the reach itself.
    """
    stated: int = config["max_position_embeddings"]
    rope = rope_parameters(config)
    if rope["rope_type"] in ("linear", "dynamic"):
        return int(stated * rope["factor"])
    if rope["rope_type"] == "yarn":
        return int(rope.get("original_max_position_embeddings", stated) * rope["factor"])
    return stated


def at_length(config: Mapping[str, Any], length: int) -> dict[str, Any]:
    """What to change in a configuration so that every sequence is rotated as transformers rotates one of a length.

    Args:
        config: values of a configuration that transformers has read, ``rope_theta`` included.
        length: tokens of the longest sequence, at most :func:`positions`.

    Returns:
        New values of ``max_position_embeddings`` and ``rope_parameters``, where they differ. Programs that look up
        positions in a table find ``length`` of them.
    """
    rope = rope_parameters(config)
    stated, dim = config["max_position_embeddings"], _head_dim(config)
    original = rope.get("original_max_position_embeddings", stated)
    if rope["rope_type"] == "dynamic":
        factor = rope.pop("factor")
        stretch = factor * max(length, stated) / stated - (factor - 1)
        rope |= {"rope_type": "default", "rope_theta": rope["rope_theta"] * stretch ** (dim / (dim - 2))}
    elif rope["rope_type"] == "longrope":
        chosen = rope["long_factor"] if length > original else rope["short_factor"]
        factor = rope.get("factor", stated / original)
        attention = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
        rope |= {"short_factor": chosen, "long_factor": chosen}
        rope.setdefault("attention_factor", attention)
    elif rope["rope_type"] == "yarn":
        rope.setdefault("original_max_position_embeddings", original)
    if "factor" in rope:
        rope["factor"] = float(rope["factor"])
    changed = {"max_position_embeddings": max(stated, length), "rope_parameters": rope}
    return {name: value for name, value in changed.items() if config.get(name) != value}


def is_fixed(config: Mapping[str, Any]) -> bool:
    """Whether a position is rotated alike in every sequence."""
    rope = rope_parameters(config)
    return rope["rope_type"] != "dynamic" and rope.get("short_factor") == rope.get("long_factor")


def _head_dim(config: Mapping[str, Any]) -> int:
    head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return head_dim
