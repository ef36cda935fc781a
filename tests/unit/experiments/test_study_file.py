"""What a study's file says is checked before hours of work.

Looks at the shipped studies and at mistakes. Not exercised: training (tests/e2e/test_study.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.paths import recipes_dir
from nemo_ibtpo.experiments.training_study.study_file import read_study

STUDIES = Path(__file__).resolve().parents[3] / "studies"
WORDS = ["rollout=transformers", "actor.tensor_model_parallel_size=1", "actor.pipeline_model_parallel_size=1"]

ARMS = {"seeds": [1, 2], "compared_with": "a", "arms": {"a": [], "b": []}}


def written(directory: Path, **changes: Any) -> Path:
    content = {
        "output_dir": str(directory / "out"),
        "overrides": [*WORDS, "actor.sequence_parallel=false"],
        "tasks": {"sums": {"recipe": str(recipes_dir() / "tiny.yaml"), "base_model": {}}},
        "groups": {"arms": ARMS | {"arms": {"a": ["method=grpo"], "b": []}}},
    }
    path = directory / "mine.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    study = read_study(path)
    assert study.name == path.stem
    assert len({run.name for run in study.runs}) == len(study.runs)
    assert len({run.config.output_dir for run in study.runs}) == len(study.runs)
    for task in study.tasks:  # what arms share: their problems, their budget, how they are measured
        configs = [run.config for run in study.runs if run.task is task]
        trainers = [replace(c.trainer, refill=0, rollout_seed=0) for c in configs]  # arms may differ in these
        shared = zip(configs, trainers, strict=True)
        assert len({repr((c.data, t, c.probe, c.rollout, c.model)) for c, t in shared}) == 1


def test_whatever_is_done_at_an_interruption_is_balanced(tmp_path: Path) -> None:
    tasks = {name: {"recipe": str(recipes_dir() / "tiny.yaml"), "base_model": {}} for name in ("s", "t")}
    names = [run.name for run in read_study(written(tmp_path, tasks=tasks)).runs]
    assert names == [f"{task}/{arm}/seed_{seed}" for seed in (1, 2) for arm in ("a", "b") for task in ("s", "t")]


def test_words_of_an_arm_come_after_those_of_all(tmp_path: Path) -> None:
    groups = {"arms": ARMS | {"arms": {"a": ["optimizer.lr=3e-4"], "b": []}}}
    words = [*WORDS, "actor.sequence_parallel=false", "optimizer.lr=1e-4"]
    study = read_study(written(tmp_path, groups=groups, overrides=words))
    assert {run.arm: run.config.optimizer.lr for run in study.runs} == {"a": 3e-4, "b": 1e-4}
    assert {run.config.seed for run in study.runs} == {1, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"g": ARMS | {"seeds": [1, 1]}}}, r"seeds=\[1, 1\]: arms need seeds, each once"),
        ({"groups": {"g": ARMS | {"seeds": ["1"]}}}, "seeds: expected int, not '1'"),
        ({"overrides": ["seed=3"]}, "'seed=3': the study itself decides"),
        ({"arms": {}}, "unknown or missing: arms"),
        ({"tasks": {"sums": {"recipe": "nowhere.yaml", "base_model": {}}}}, "arm a on task sums: .*no such file"),
        ({"tasks": {"sums": {"recipe": "x.yaml", "base_model": "gpt"}}}, "base_model=gpt: write settings"),
        ({"groups": {"g": ARMS | {"compared_with": "c"}}}, "compared_with=c is no arm"),
        ({"final": {"num_prompts": 8}}, "final: it has the keys .*; unknown or missing: samples_per_prompt"),
        ({"final": {"num_prompts": 0, "samples_per_prompt": 1}}, "final.num_prompts=0 must be above 0"),
        (
            {"final": {"num_prompts": 2000, "samples_per_prompt": 1}},
            "final.num_prompts=2000, but task sums has data.validation.size=",
        ),
        ({"simulated_on": {"recipe": 8, "prompt_tokens": 1, "response_tokens": 1}}, "recipe: expected str, not 8"),
        (
            {"groups": {"g": ARMS | {"arms": {"a": ["method=treepo", "sampler=independent"]}}}},
            "arm a on task sums: method TreePO compares",
        ),
    ],
)
def test_mistakes_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_study(written(tmp_path, **changes))
