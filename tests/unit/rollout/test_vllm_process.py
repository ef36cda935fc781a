"""The vLLM process as its owner sees it, without vLLM: when it is gone, and what of the environment reaches it.

Not exercised: GPU memory, which is why the end of the whole group is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.vllm.process import await_group_end

# The leader starts a child in its group, says the child's id, and is killed; the child goes on for a while.
LEADER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep({seconds})"])
print(child.pid, flush=True)
time.sleep(60)
"""


def killed_leader(seconds: float) -> tuple[int, int]:
    """The process group of a leader that has been killed and reaped, and a child of its that lives on."""
    program = LEADER.format(seconds=seconds)
    leader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    leader.kill()
    leader.wait()
    leader.stdout.close()
    return leader.pid, child


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_end_of_the_whole_group_is_waited_for() -> None:
    group, child = killed_leader(seconds=2)
    assert is_running(child)
    await_group_end(group, timeout_s=60)
    assert not is_running(child)


def test_a_process_that_does_not_end_is_named() -> None:
    group, child = killed_leader(seconds=60)
    with pytest.raises(UserError, match=rf"process {child} of vLLM did not end within 0\.2 s"):
        await_group_end(group, timeout_s=0.2)
    os.kill(child, signal.SIGKILL)
