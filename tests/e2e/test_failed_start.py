"""A run that cannot start leaves no process behind, whichever part fails.

Why it matters: a vLLM process that nobody owns keeps a GPU's memory, and the next attempt fails for want of it. One
process makes the attempts, since one that ends takes most of what it started with it. Not exercised: several ranks
(tests/crash looks at what they leave), engines on GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HAS_VLLM = find_spec("vllm") is not None
NEEDS_VLLM = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    root = tmp_path_factory.mktemp("failed_start")
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(HERE / "failed_start_story.py"), str(root), "vllm" if HAS_VLLM else "no_vllm"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    attempts: dict[str, tuple[int, str, list[str]]] = json.loads((root / "told.json").read_text())
    return attempts


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        ("weights", "model.norm.weight"),
        pytest.param("engine", "not ready after", marks=pytest.mark.skipif(not HAS_VLLM, reason="no vLLM")),
        pytest.param(
            "after_the_engine", "its format is None", marks=pytest.mark.skipif(not HAS_VLLM, reason="no vLLM")
        ),
    ],
)
def test_nothing_is_left(told: dict[str, tuple[int, str, list[str]]], attempt: str, message: str) -> None:
    status, text, left = told[attempt]
    assert status == 2 and message in text, text
    assert left == []
