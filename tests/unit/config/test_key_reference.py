"""Every key has a sentence: it is what ``--help`` and the error messages say about it."""

import pytest

from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.config.help_text import eval_epilog, train_epilog
from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.paths import recipe_names
from nemo_ibtpo.config.reference import keys, sections
from nemo_ibtpo.config.schema import EvalConfig, RunConfig


@pytest.mark.parametrize("root", [RunConfig, EvalConfig, ExpManagerConfig])
def test_every_key_is_documented(root: type) -> None:
    assert [path for path, key in keys(root).items() if not key.doc] == []


@pytest.mark.parametrize("root", [RunConfig, EvalConfig, ExpManagerConfig])
def test_every_key_has_a_default_or_must_be_given(root: type) -> None:
    assert set(default_values(root)) == set(keys(root))


def test_help_of_evaluations_names_every_benchmark_and_key() -> None:
    text = eval_epilog()
    for name in ("math500", "aime25", "gpqa_diamond", "ifeval", "jsonl"):
        assert f"\n  benchmark={name} " in text
    assert "sampler=" not in text and all(f"\n  {path}=" in text for path in keys(EvalConfig))


def test_docstrings_and_types_are_read() -> None:
    assert keys()["optimizer.warmup_steps"].doc == "Optimizer steps from 0 to lr."
    assert "the sum (product) of its tokens'" in keys()["ib_score.step_probability"].doc
    assert keys()["seed"].type is int


def test_sections_are_the_nested_ones() -> None:
    assert {"actor", "data", "data.train"} <= sections()
    assert not sections() & set(keys())


def test_help_names_every_recipe_group_and_key() -> None:
    text = train_epilog()
    for name in recipe_names():
        assert f"\n  {name} " in text or f"\n  {name}\n" in text  # a long name has a line of its own
    for choice in (
        "sampler=ib",
        "sampler=random",
        "sampler=independent",
        "method=grpo",
        "loss=clip_higher",
        "data=jsonl",
    ):
        assert f"\n  {choice} " in text
    for path in keys():
        assert f"\n  {path}=" in text or path.startswith("data.validation.")
    assert all(f"\n  exp_manager.{path}=" in text for path in keys(ExpManagerConfig))
    assert "Stages that share the layers" in text
