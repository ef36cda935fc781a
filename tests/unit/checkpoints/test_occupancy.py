"""One run at a time in an output directory; a process that ends, however, leaves it free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_ibtpo.checkpoints import occupancy
from nemo_ibtpo.checkpoints.occupancy import only_run_in
from nemo_ibtpo.config.errors import UserError

HOLD = """\
import sys
from pathlib import Path
from nemo_ibtpo.checkpoints.occupancy import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_the_second_run_is_refused_until_the_first_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occupancy, "_PATIENCE_S", 0.0)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout is not None and first.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match="is in use by another run"), only_run_in(tmp_path):
            pass
        monkeypatch.setenv("RANK", "1")  # rank 0 speaks for all
        with only_run_in(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        first.kill()
        first.wait()
    with only_run_in(tmp_path / "new"), only_run_in(tmp_path):
        pass
