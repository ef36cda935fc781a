"""What a gradient study is asked to compare must be comparable, or be refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from toy_models import random_model

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.paths import conf_dir
from nemo_ibtpo.experiments.gradient_study.gradient_arms import GradientStudy, read_study

ARMS = {
    "grpo_8": ["method=grpo", "sampler.initial_rollouts=8"],
    "ib": ["method=ibtpo", "method.ib_coef=0"],
    "ib_lambda": ["method=ibtpo"],
    "random": ["method=ibtpo", "sampler=random"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    random_model("qwen3").save_pretrained(directory)
    (directory / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return directory


@pytest.fixture
def words(model: Path, tmp_path: Path) -> list[str]:
    return ["recipe=tiny", f"model.path={model}", f"output_dir={tmp_path / 'run'}", "rollout=transformers"]


def read(tmp_path: Path, words: list[str], **changes: object) -> GradientStudy:
    settings = yaml.safe_load((conf_dir() / "gradient_study.yaml").read_text()) | {"arms": ARMS} | changes
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return read_study(file, words)


def test_the_shipped_study_is_sound(words: list[str]) -> None:
    study = read_study(None, words)
    assert study.compared_with == "grpo_8" and study.num_prompts == 64
    assert sum(group.repetitions * group.config.sampler.initial_rollouts for group in study.groups()[:1]) == 1024


def test_arms_that_sample_alike_share_their_trees(tmp_path: Path, words: list[str]) -> None:
    study = read(tmp_path, [*words, "num_prompts=3", "seed=7"])
    assert [list(group.arms) for group in study.groups()] == [
        ["reference"],
        ["grpo_8"],
        ["ib", "ib_lambda"],
        ["random"],
    ]
    assert study.num_prompts == 3 and study.common.seed == 7
    assert len({study.digest(arm) for arm in (*study.arms, "reference")}) == 5
    again = read(tmp_path, [*words, "num_prompts=3", "seed=7"], arms=ARMS | {"new": ["method=ibro"]})
    assert again.identity() == study.identity(), "an arm more does not undo what was measured of the others"
    assert again.digest("ib") == study.digest("ib")


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"arms": ARMS | {"hot": ["rollout.temperature=2"]}}, [], "arm hot: arms may set sampler, method"),
        ({"arms": ARMS | {"none": ["method=none"]}}, [], "arm none: "),
        ({"arms": ARMS | {"reference": []}}, [], "none is 'reference'"),
        ({"arms": ["grpo"]}, [], "arms is a mapping"),
        ({"compared_with": "gone"}, [], "compared_with=gone must be one of the arms"),
        ({"arm": {}}, [], "unknown or missing: arm$"),
        ({"repetitions": None}, [], "unknown or missing: repetitions$"),
        ({}, ["repetitions=1"], "repetitions=1: a gradient study needs an integer of at least 2"),
        ({}, ["reference_trajectories=9"], "reference_trajectories=9 must be even"),
        ({}, ["num_prompts=0"], "num_prompts=0: a study needs an integer of at least 1"),
        ({}, ["dataset=test"], "dataset=test: problems are those of train or of validation"),
        ({}, ["recipe=tiny"], "study gradient takes one recipe=<name or path>, not 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, words: list[str], changes: dict[str, object], more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, [*words, *more], **changes)
