"""Saving: for how long a checkpoint keeps training waiting, with and without ``checkpoint.async_save``.

What is timed is ``CheckpointStore.save``, as training calls it after a step, on a random model of 112 M parameters
with the settings of ``recipe=tiny``: its float32 weights, main weights and moments. Without the option it returns
when the checkpoint is in place: written, synced, hashed and renamed. With it, when the tensors have been copied to
host memory; the time until the checkpoint is in place is ``in_place_s``. Both sides run in turn, and nothing trains
meanwhile. The first save, for which host memory is made, is told apart (``first_blocked_s``).

    python benchmarks/saving.py
    python benchmarks/saving.py --tensor 1 --pipeline 1 --data 2
    python benchmarks/saving.py --device cuda --dtype bf16 --tensor 1 --pipeline 1

The last line is JSON: ``blocked_ratio`` is the median over the repetitions of the seconds with the option over those
without, beside its spread and both medians; ``file_bytes`` is what the rank with the most has written, and takes of
host memory for the copy. All times are those of the slowest rank.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch.distributed as dist
from measure import describe, ratio, report
from refit import write_model

from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.megatron import parallel, random_state
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.training.checkpoint_store import CheckpointStore


def measure_saving(scratch: Path, options: argparse.Namespace) -> None:
    """Time both sides; called on every rank."""
    config = compose(
        "tiny",
        [
            f"model.path={scratch}",
            f"model.dtype={options.dtype}",
            f"actor.device={options.device}",
            f"actor.tensor_model_parallel_size={options.tensor}",
            f"actor.pipeline_model_parallel_size={options.pipeline}",
            f"actor.sequence_parallel={str(options.tensor > 1).lower()}",
        ],
    )
    context = parallel.initialize(config.actor, seed=0)
    actor = MegatronActor(
        load_architecture(scratch),
        SafetensorsDirectory(scratch),
        actor=config.actor,
        optimizer=config.optimizer,
        total_updates=1,
        dtype=TORCH_DTYPES[config.model.dtype],
        temperature=1.0,
        keep_reference=False,
        context=context,
    )
    with context.scope():
        random = random_state.capture()

    def store(name: str, async_save: bool) -> CheckpointStore:
        own = replace(
            config,
            output_dir=str(scratch / name),
            checkpoint=replace(config.checkpoint, async_save=async_save, keep_last=1, keep_best=0),
        )
        return CheckpointStore(own, actor, {}, RunConsole(rank=1))  # silent

    stores = [store("without", False), store("with", True)]

    def save(side: int, step: int) -> list[float]:
        content = {"step": step, "accuracy": None}
        state: Any = SimpleNamespace(step=step, carried=(), random=random, as_saved=lambda: content)
        gc.collect()
        os.sync()  # what the side before has left to be written is not this one's
        dist.barrier()
        began = time.perf_counter()
        stores[side].save(state)
        blocked = time.perf_counter() - began
        stores[side].finish()
        everyone = gather_from_all((blocked, time.perf_counter() - began))
        return [max(own[i] for own in everyone) for i in range(2)]

    first = [save(side, 1) for side in range(2)]
    seconds = np.empty((options.repetitions, 2, 2))
    for repetition in range(options.repetitions):
        for side in (0, 1) if repetition % 2 else (1, 0):
            seconds[repetition, side] = save(side, 2 + repetition)
    without, blocked, in_place = seconds[:, 0, 0], seconds[:, 1, 0], seconds[:, 1, 1]
    directory = scratch / "with" / "checkpoints" / "latest" / "megatron"
    files = [file.stat().st_size for file in directory.glob("*.distcp")]
    if dist.get_rank() == 0:
        ratios = blocked / without
        report(
            blocked_ratio=ratio(blocked, without),
            blocked_ratio_low=float(ratios.min()),
            blocked_ratio_high=float(ratios.max()),
            without_s=float(np.median(without)),
            blocked_s=float(np.median(blocked)),
            in_place_s=float(np.median(in_place)),
            first_blocked_s=first[1][0],
            checkpoint_bytes=sum(files),
            file_bytes=max(files),
            ranks=dist.get_world_size(),
            data_parallel=actor.data_parallel_size,
            repetitions=options.repetitions,
            device=describe(context.device),
        )
    parallel.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensor", type=int, default=2, help="tensor-parallel ranks")
    parser.add_argument("--pipeline", type=int, default=2, help="pipeline stages")
    parser.add_argument("--data", type=int, default=1, help="data-parallel ranks")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # set for the ranks
    options = parser.parse_args()
    if options.scratch is not None:
        measure_saving(options.scratch, options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), "tiny" if options.tiny else "112m")
        ranks = options.tensor * options.pipeline * options.data
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, *sys.argv, f"--scratch={scratch}"]
        threads = {"OMP_NUM_THREADS": "1"} if options.device == "cpu" else {}
        sys.exit(subprocess.run(command, env=os.environ | threads, check=False).returncode)


if __name__ == "__main__":
    main()
