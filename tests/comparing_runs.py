"""What two runs of the same job must have in common, read from what they left on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a ``torch_dist`` directory, in full."""
    entries = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    state = {name: torch.empty(e.size, dtype=e.properties.dtype) for name, e in entries.items() if hasattr(e, "size")}
    dcp.load(state, checkpoint_id=str(path), no_dist=True)
    return state


def logged(output: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` but for what a clock has measured, and for the order of the keys."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in sorted(row) if not name.startswith(("time/", "perf/"))} for row in rows]


def assert_same_run(output: Path, expected: Path, step: int) -> None:
    """Bitwise the same weights, optimizer, generators, cursor, metrics, evaluations, trees and exported model."""
    mine, theirs = (directory / "checkpoints" / f"step_{step}" for directory in (output, expected))
    a, b = tensors(mine / "megatron"), tensors(theirs / "megatron")
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for file in sorted((theirs / "rng").iterdir()):
        generators, others = load_file(mine / "rng" / file.name), load_file(file)
        assert generators.keys() == others.keys()
        # Compared as bytes: a generator without a second Gaussian number keeps a NaN in its place.
        assert [n for n in others if generators[n].numpy().tobytes() != others[n].numpy().tobytes()] == []
    assert (
        json.loads((mine / "run.json").read_text())["cursor"]
        == json.loads((theirs / "run.json").read_text())["cursor"]
    )
    carried = "trees_in_flight.safetensors"
    assert (mine / carried).exists() == (theirs / carried).exists()
    if (theirs / carried).exists():
        assert (mine / carried).read_bytes() == (theirs / carried).read_bytes()
    assert logged(output) == logged(expected)
    for file in sorted((expected / "validation").iterdir()):
        assert (output / "validation" / file.name).read_text() == file.read_text()
    trees, others = (sorted((run / "trees").iterdir()) for run in (output, expected))
    assert [file.name for file in trees] == [file.name for file in others]
    assert all(file.read_bytes() == other.read_bytes() for file, other in zip(trees, others, strict=True))
    assert (output / "hf" / "model.safetensors").read_bytes() == (expected / "hf" / "model.safetensors").read_bytes()
    assert json.loads((output / "status.json").read_text())["state"] == "complete"
    assert not list(output.glob("**/*.tmp"))
