"""What test_checkpoints.py looks at: one job after the other, as the command line runs it, in one process.

Each rank of a real run is a process of its own; here one process plays them in turn, which spares the imports.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

from tiny_job import write_tiny_job

from nemo_ibtpo.checkpoints import manifest
from nemo_ibtpo.cli import main
from nemo_ibtpo.megatron import parallel


def tell(root: Path) -> dict[str, tuple[int, str]]:
    """Exit status and output of each chapter."""
    recipe = write_tiny_job(root / "job")
    output, other = root / "out", root / "other"
    checkpoints = output / "checkpoints"
    told: dict[str, tuple[int, str]] = {}

    def train(chapter: str, *words: str, to: Path = output) -> None:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = main(["train", f"recipe={recipe}", f"output_dir={to}", *words])
        parallel.shutdown()  # an error leaves that to the end of the process
        told[chapter] = (status, text.getvalue())

    def damage(step: int) -> None:
        shard = checkpoints / f"step_{step}" / "megatron" / "__0_0.distcp"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1  # one bit
        shard.write_bytes(content)

    train("first", "trainer.max_steps=4")
    train("again", "trainer.max_steps=4")
    damage(4)
    shutil.copytree(output, root / "damaged", symlinks=True)
    train("refuse", "trainer.max_steps=6", "checkpoint.on_damage=refuse")
    train("fall_back", "trainer.max_steps=6")
    train("never", "trainer.max_steps=8", "checkpoint.resume=never")
    train("changed", "trainer.max_steps=8", "seed=2", "data.train.size=11")
    train("forced", "trainer.max_steps=7", "optimizer.lr=0.002", "data.train.size=11", "checkpoint.force=true")
    train("path", "trainer.max_steps=8", f"checkpoint.resume={checkpoints / 'step_6'}", to=other)
    train("time", "trainer.max_steps=1000", "trainer.max_time='00:00:03'", to=other)
    (root / "told.json").write_text(json.dumps(told))
    (checkpoints / "step_7" / "manifest.json").unlink()
    (checkpoints / "step_6" / "run.json").write_text("{}")
    shutil.rmtree(checkpoints / "step_2", ignore_errors=True)
    no_space = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(manifest, "write_manifest", side_effect=no_space):
        train("full_disk", "trainer.max_steps=4", to=root / "full")
    train("nothing_whole", "trainer.max_steps=8")
    return told


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / "told.json").write_text(json.dumps(tell(directory)))
