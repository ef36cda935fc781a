"""Which checkpoint a run goes on from, for every setting and every kind of damage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from nemo_ibtpo.checkpoints.choice import choose
from nemo_ibtpo.checkpoints.directory import CheckpointDirectory
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import CheckpointConfig

ROOT = Path("out/checkpoints")


def decide(
    steps: list[int],
    damaged: set[Path],
    resume: str = "auto",
    on_damage: Literal["refuse", "fall_back"] = "fall_back",
) -> tuple[Path | None, list[str]]:
    """What is chosen, and what is said; ``damaged`` are paths."""
    said: list[str] = []
    chosen = choose(
        CheckpointDirectory(ROOT, keep_last=2, keep_best=1),
        steps,
        CheckpointConfig(10, True, 2, 1, resume, on_damage, False),
        find_damage=lambda path: "torn" if path in damaged else None,
        set_aside=lambda step: ROOT / f"set_aside_step_{step}.1",
        say=said.append,
    )
    return chosen, said


def test_the_newest_whole_one_is_taken() -> None:
    assert decide([], set()) == (None, [])
    assert decide([6, 4], set()) == (ROOT / "step_6", [])
    aside = f"{ROOT / 'step_6'} is damaged: torn; set aside as set_aside_step_6.1"
    assert decide([6, 4], {ROOT / "step_6"}) == (ROOT / "step_4", [aside])


def test_without_a_whole_one_the_run_begins_again() -> None:
    chosen, said = decide([6, 4], {ROOT / "step_6", ROOT / "step_4"})
    assert chosen is None and len(said) == 3 and said[-1] == "no whole checkpoint is left; the run begins again"


def test_another_runs_checkpoint_is_only_the_beginning() -> None:
    other = Path("elsewhere/step_9")
    assert decide([], set(), resume=str(other)) == (other, [])
    assert decide([4], {other}, resume=str(other)) == (ROOT / "step_4", [])
    with pytest.raises(UserError, match=r"checkpoint\.resume=elsewhere/step_9: torn"):
        decide([], {other}, resume=str(other))


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"step_6 is damaged: torn; with checkpoint.on_damage=fall_back the newest"):
        decide([6, 4], {ROOT / "step_6"}, on_damage="refuse")
    with pytest.raises(UserError, match=r"holds checkpoints up to step 6, but checkpoint\.resume=never"):
        decide([6, 4], set(), resume="never")
    assert decide([], set(), resume="never") == (None, [])
