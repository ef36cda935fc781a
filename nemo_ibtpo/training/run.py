"""A training run from its configuration to its end, on this rank."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.checkpoints.status import State, write_status
from nemo_ibtpo.checkpoints.stopping import StopRequest
from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import max_seconds
from nemo_ibtpo.megatron import parallel, random_state
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.training.build import build
from nemo_ibtpo.training.loop import train
from nemo_ibtpo.training.stopping import StoppedError


def run_training(config: RunConfig) -> str | None:
    """Train as configured, on this rank; the configuration has been validated.

    Below ``output_dir`` it writes ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``trees/``,
    ``validation/``, ``checkpoints/``, ``status.json`` and the trained model in ``hf/``.

    Returns:
        Why the run stopped before its end, to be started again; None if it is complete.

    Raises:
        UserError: something the user can mend, found before or during the run; what was started has ended.
    """
    request = StopRequest(max_seconds(config.trainer.max_time))
    request.install()
    context = parallel.initialize(config.actor, config.seed)
    rank, output = dist.get_rank(), Path(config.output_dir)
    random_state.seed(config.seed + rank)
    console = RunConsole(rank)
    processes = gather_from_all(f"{socket.gethostname()}:{os.getpid()}")
    if rank == 0:
        write_status(output, "running", processes=processes)
    transformers_logging.disable_progress_bar()  # every rank would draw its own

    stopped = None
    with ExitStack() as stack:
        parts, state = build(config, context, request, console, stack)
        try:
            train(parts, state)
        except StoppedError as error:
            parts.store.save(state)
            stopped = str(error)
            console.say(f"stopped: {stopped}; the same command goes on")
        parts.store.finish()
    if rank == 0:
        ended: State = "complete" if stopped is None else "requeue"
        write_status(output, ended, step=state.step, sampled_tokens=state.sampled_tokens, reason=stopped)
    parallel.shutdown()
    return stopped
