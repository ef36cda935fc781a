"""``status.json``: how a run stands, for whoever started it.

The exit status of torchrun does not tell a run that wants to be started again from one that failed; this file does.
``running`` after the processes have gone means that they were killed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from nemo_ibtpo.checkpoints.manifest import write_durably

FILE_NAME = "status.json"
EXIT_REQUEUE = 85

State = Literal["running", "requeue", "complete", "failed"]


def write_status(output_dir: Path, state: State, **details: Any) -> None:
    """Replace the status in one go; by one process of the run.

    Args:
        output_dir: of the run.
        state: ``running``; ``requeue``: stopped on request, to be started again; ``complete``; ``failed``: needs
            somebody to look at it.
        details: JSON-able.
    """
    content = {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **details}
    write_durably(output_dir / FILE_NAME, json.dumps(content, indent=1) + "\n")


def read_status(output_dir: Path) -> dict[str, Any] | None:
    """The status, None if there is none that can be read."""
    try:
        content = json.loads((output_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished_steps(output_dir: Path) -> int | None:
    """Steps of a run that is complete, None if it is not."""
    status = read_status(output_dir)
    if status is None or status.get("state") != "complete":
        return None
    return int(status["step"])
