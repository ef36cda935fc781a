"""The checkpoints of a run on disk.

Invariants (tested by ``tests/unit/checkpoints/test_directory.py``):

- A directory ``step_<n>`` was renamed into place after everything in it was on the disk. A process that dies at any
  moment leaves the checkpoints before it as they were, and perhaps a directory that begins with a dot.
- ``latest`` names a checkpoint that is in place; it moves last.
- Pruning keeps the newest ``keep_last``, the best ``keep_best``, and whatever is not a checkpoint.

Only one process of a run calls what writes.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from nemo_ibtpo.checkpoints.manifest import DamagedError, read_manifest
from nemo_ibtpo.files import sync_directory, write_atomically

LATEST = "latest"
RUN = "run.json"
_NAME = re.compile(r"step_(\d+)")


class CheckpointDirectory:
    """``<output_dir>/checkpoints``.

    Args:
        root: need not exist.
        keep_last: newest checkpoints that are kept.
        keep_best: checkpoints with the highest accuracy that are kept besides.
    """

    def __init__(self, root: Path, keep_last: int, keep_best: int) -> None:
        self.root = root
        self._keep_last = keep_last
        self._keep_best = keep_best

    def steps(self) -> list[int]:
        """Steps of the checkpoints in place, newest first."""
        if not self.root.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.root.iterdir() if path.is_dir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.root / f"step_{step}"

    def unfinished(self, step: int) -> Path:
        """Where it is written until it is complete."""
        return self.root / f".step_{step}.tmp"

    def begin(self, step: int) -> None:
        """Make an empty directory to write to; what earlier attempts left is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.remove_unfinished()
        self.unfinished(step).mkdir()

    def remove_unfinished(self) -> None:
        """Remove what was not brought to its end."""
        for left in self.root.glob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def commit(self, step: int) -> None:
        """Put the checkpoint, whose manifest has been written, into place, point ``latest`` to it and prune."""
        target = self.path(step)
        if target.exists():
            self.set_aside(step)
        self.unfinished(step).rename(target)
        sync_directory(self.root)
        pointer = self.root / f".{LATEST}.tmp"
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(target.name)
        pointer.replace(self.root / LATEST)
        sync_directory(self.root)
        self._prune()

    def set_aside(self, step: int) -> Path:
        """Rename a checkpoint that is not to be used, so that nothing takes it for one; where it is now."""
        number = 1
        while (aside := self.root / f"set_aside_step_{step}.{number}").exists():
            number += 1
        self.path(step).rename(aside)
        return aside

    def _prune(self) -> None:
        steps = self.steps()
        ranked = sorted(
            ((accuracy, step) for step in steps if (accuracy := self._accuracy(step)) is not None), reverse=True
        )
        kept = {*steps[: self._keep_last], *(step for _, step in ranked[: self._keep_best])}
        for step in steps:
            if step not in kept:
                # Not in place any more before the first file goes: what is in place is whole.
                doomed = self.unfinished(step)
                self.path(step).rename(doomed)
                shutil.rmtree(doomed)

    def _accuracy(self, step: int) -> float | None:
        try:
            accuracy: float | None = read_run(self.path(step))["accuracy"]
        except DamagedError:
            return None
        return accuracy


def write_run(directory: Path, content: dict[str, Any]) -> None:
    """Write what the run was when the checkpoint was made."""
    write_atomically(directory / RUN, json.dumps(content, indent=1) + "\n")


def read_run(directory: Path) -> dict[str, Any]:
    """What :func:`write_run` wrote.

    Raises:
        DamagedError: the file is missing or damaged.
    """
    try:
        content = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{RUN} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{RUN} holds no object")
    return content


def check_quickly(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a checkpoint whose files are there in their size.

    Raises:
        DamagedError: they are not.
    """
    files = read_manifest(directory)
    if RUN not in files:
        raise DamagedError(f"its manifest does not name {RUN}: it is no checkpoint of a training run")
    return files
