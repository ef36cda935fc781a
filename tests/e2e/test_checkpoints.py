"""Going on from checkpoints as a user meets it: what is used, what is refused, and in which words.

Why it matters: a run that begins again without a word, or goes on from a damaged file, costs more than one that
stops. One process trains a tiny model in turn as different commands would. Equality of what comes out, several ranks
and signals: tests/distributed/test_resume.py, tests/crash.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comparing_runs import logged

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("story")
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(HERE / "checkpoint_story.py"), str(root)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return root


@pytest.fixture(scope="module")
def told(root: Path) -> dict[str, tuple[int, str]]:
    chapters: dict[str, tuple[int, str]] = json.loads((root / "told.json").read_text())
    return chapters


def test_saving_is_said(told: dict[str, tuple[int, str]]) -> None:
    status, text = told["first"]
    assert status == 0, text
    assert "saved    after every 2 steps and the last step" in text  # the batch plan
    for step in (2, 4):
        assert f"checkpoints/step_{step}: 0.000" in text and "GiB in" in text


def test_a_full_disk_ends_the_run_with_one_line(root: Path, told: dict[str, tuple[int, str]]) -> None:
    status, text = told["full_disk"]
    assert status == 2
    assert text.count("nemo-ibtpo: error") == 1 and "No space left on device" in text.splitlines()[-1]
    assert list((root / "full" / "checkpoints").iterdir()) == []  # nothing half written is left
    assert json.loads((root / "full" / "status.json").read_text())["state"] == "failed"


def test_a_finished_run_says_so(told: dict[str, tuple[int, str]]) -> None:
    status, text = told["again"]
    assert status == 0 and text.startswith("this run is complete: 4 steps")


def test_a_flipped_bit_is_refused_or_passed_over(root: Path, told: dict[str, tuple[int, str]]) -> None:
    damage = "step_4 is damaged: megatron/__0_0.distcp does not have the content that was saved (SHA-256)"
    status, text = told["refuse"]
    assert (
        status == 2 and damage in text and text.count("\n") == text[: text.index("nemo-ibtpo: error")].count("\n") + 1
    )
    status, text = told["fall_back"]
    assert status == 0, text
    assert f"{damage}; set aside as set_aside_step_4.1" in text
    assert "resuming after step 2 of 6 from" in text
    assert (root / "out" / "checkpoints" / "set_aside_step_4.1").is_dir()
    # What the first run logged after step 2 was replaced by the same, since nothing had changed.
    assert [row["step"] for row in logged(root / "damaged")] == [0, 1, 2, 3, 4]
    rows = logged(root / "other")
    assert [row["step"] for row in rows][:2] == [7, 8]


def test_what_would_mix_two_experiments_is_refused(told: dict[str, tuple[int, str]]) -> None:
    status, text = told["changed"]
    assert status == 2
    assert "the training problems (data.train, template or tokenizer) changed; seed was 1, is 2. Go on with" in text
    status, text = told["never"]
    assert status == 2 and "holds checkpoints up to step 6, but checkpoint.resume=never" in text
    status, text = told["forced"]
    assert status == 0, text
    assert "going on although the training problems" in text and "optimizer.lr was 0.001, is 0.002" in text
    assert "step 7/7" in text


def test_another_runs_checkpoint_is_the_beginning(told: dict[str, tuple[int, str]]) -> None:
    status, text = told["path"]
    assert status == 0, text
    assert "resuming after step 6 of 8 from" in text


def test_time_is_over(root: Path, told: dict[str, tuple[int, str]]) -> None:
    status, text = told["time"]
    assert status == 85, text
    assert "resuming after step 8 of 1000 from" in text
    assert "stopped: trainer.max_time is over; the same command goes on" in text
    state = json.loads((root / "other" / "status.json").read_text())
    assert (state["state"], state["reason"]) == ("requeue", "trainer.max_time is over")
    assert (root / "other" / "checkpoints" / f"step_{state['step']}").is_dir()


def test_without_a_whole_checkpoint_the_run_begins_again(root: Path, told: dict[str, tuple[int, str]]) -> None:
    status, text = told["nothing_whole"]
    assert status == 0, text
    assert "no whole checkpoint is left; the run begins again" in text
    assert [row["step"] for row in logged(root / "out")] == list(range(9))
    evaluated = sorted(path.name for path in (root / "out" / "validation").glob("step_*"))
    assert evaluated == [f"step_{step}.jsonl" for step in (0, 2, 4, 6, 8)]
