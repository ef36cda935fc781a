"""One run at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_ibtpo.config.errors import UserError

FILE_NAME = ".lock"
_PATIENCE_S = 15.0  # a run that was killed may still be on its way out
_POLL_S = 0.2


@contextmanager
def only_run_in(output_dir: Path) -> Iterator[None]:
    """Keep a directory to this run while the block runs; on rank 0, the others do nothing.

    The lock ends with the process, however that ends. On a file system without locks there is none.

    Raises:
        UserError: another run has the directory.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = (output_dir / FILE_NAME).open("w")
    except OSError:  # the checks of the run say so
        yield
        return
    with file:
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(file.fileno()):
            if time.monotonic() > deadline:
                raise UserError(f"{output_dir} is in use by another run; wait for its end, or choose another one")
            time.sleep(_POLL_S)
        yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True
