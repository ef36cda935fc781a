"""Samplers are compared on the same everything else; a misread word would compare something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_directories import write_model_directory

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.sampler_comparison.choices import read_settings

RECIPE = """\
defaults: [config, {{override /data: reasoning_gym}}, _self_]
output_dir: {directory}/runs
model: {{path: {directory}/model}}
data: {{train: {{path: chain_sum}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    write_model_directory(tmp_path / "model")
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(directory=tmp_path))
    return f"recipe={path}"


def test_words_go_where_they_belong(recipe: str) -> None:
    words = ["samplers=[ib,small:ib,independent]", "small.rounds=3", "seed=7", "num_prompts=5", "dataset=validation"]
    settings = read_settings([recipe, *words])
    assert list(settings.samplers) == ["ib", "small", "independent"]
    assert [config.sampler.trajectories_per_prompt for config in settings.samplers.values()] == [12, 6, 12]
    assert {config.seed for config in settings.samplers.values()} == {7}
    assert (settings.num_prompts, settings.dataset) == (5, "validation")
    assert list(read_settings([recipe]).samplers) == ["independent", "ib", "random"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samplers=[]"], "needs a list of samplers"),
        (["samplers=[ib,ib]"], "ib comes twice; tell them apart with label:sampler"),
        (["samplers=[data:ib]"], "data is a section of the configuration"),
        (["samplers=[beam]"], "sampler=beam: there is no such choice"),
        (["samplers=[full]", "full.segment_tokens=2000"], r"sampler full .*: sampler.rounds=3 branches after 2 segm"),
        (["samplers=[ib"], "is not key=value with a YAML value"),
        (["smal.rounds=3", "samplers=[small:ib]"], "'smal' is no sampler of this study .did you mean 'small'"),
        (["sampler=ib"], r"name them as samplers=\[...\]"),
        (["num_prompts=0"], "num_prompts=0: a study needs an integer of at least 1"),
        (["dataset=test"], "problems are those of train or of validation"),
        (["recipe=tiny"], "takes one recipe=<name or path>, not 2"),
    ],
)
def test_mistakes(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_settings([recipe, *words])
    assert "\n" not in str(error.value)
