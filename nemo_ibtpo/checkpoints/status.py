"""``status.json``: how a run stands, for whoever started it.

The exit status of torchrun does not tell a run that wants to be started again from one that failed; this file does.
``running`` after the processes have gone means that they were killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nemo_ibtpo.checkpoints import stopping
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import TrainerConfig
from nemo_ibtpo.files import write_atomically

FILE_NAME = "status.json"
EXIT_REQUEUE = 85
_GRACE_S = 2.0  # torchrun looks at its ranks ten times a second, and asks the others to stop when one is gone

State = Literal["running", "requeue", "complete", "failed"]


def write_status(output_dir: Path, state: State, **details: Any) -> None:
    """Replace the status in one go; by one process of the run.

    Args:
        output_dir: of the run; made if it is not there.
        state: ``running``; ``requeue``: stopped on request, to be started again; ``complete``; ``failed``: needs
            somebody to look at it.
        details: JSON-able.
    """
    content = {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **details}
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(output_dir / FILE_NAME, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def failure_is_told(output_dir: Path) -> Iterator[None]:
    """Write ``failed`` when the block ends with an error of its own.

    Not when another rank has gone: then that one has the reason, or was killed and left the status at ``running``.
    Such an error is known by its kind, or by the request to stop that torchrun sends to the ranks that are left.
    """
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            write_status(output_dir, "requeue", reason="interrupted")
        raise
    except Exception as error:
        grace = 0.0 if isinstance(error, UserError) or "RANK" not in os.environ else _GRACE_S
        if not _is_lost_peer(error) and not stopping.was_requested(within_s=grace):
            reason = " ".join(str(error).split()) or type(error).__name__
            with contextlib.suppress(OSError):  # an output_dir that cannot be written may be the error
                write_status(output_dir, "failed", reason=reason)
        raise


def _is_lost_peer(error: BaseException | None) -> bool:
    if error is None:
        return False
    # torch raises its own classes with NCCL and plain ones with gloo; their module names them without an import.
    family = {base.__name__ for base in type(error).__mro__}
    lost = "DistError" in family or (isinstance(error, RuntimeError) and "gloo" in str(error))
    return lost or _is_lost_peer(error.__cause__)


def read_status(output_dir: Path) -> dict[str, Any] | None:
    """The status, None if there is none that can be read."""
    try:
        content = json.loads((output_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished_steps(output_dir: Path, trainer: TrainerConfig) -> int | None:
    """Steps of a run that is complete and has nothing to do under this configuration, None of any other."""
    status = read_status(output_dir)
    if status is None or status.get("state") != "complete":
        return None
    done = is_done(trainer, int(status["step"]), int(status["sampled_tokens"]))
    return int(status["step"]) if done else None


def is_done(trainer: TrainerConfig, step: int, sampled_tokens: int) -> bool:
    """Whether a run has made its last step.

    Args:
        trainer: says when a run ends.
        step: the last step that was made.
        sampled_tokens: tokens that engines have drawn for training so far.
    """
    budget = trainer.max_sampled_tokens
    return step >= trainer.max_steps or (budget is not None and sampled_tokens >= budget)
