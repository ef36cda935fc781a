"""What may differ between a run and the checkpoint that it goes on from.

Why it matters: a setting that changes unseen makes two halves of one curve belong to two experiments; one that is
refused without need makes people force everything. A key that is added later must match until somebody decides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nemo_ibtpo.checkpoints.comparison import differences
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig

DIGESTS = {"model": "m", "training": "t", "validation": "v"}


def config(*words: str) -> RunConfig:
    return compose("tiny", ["name=x", *words])


def identity(run: RunConfig, **digests: str) -> dict[str, Any]:
    return {"config": dataclasses.asdict(run), "digests": DIGESTS | digests}


def compare(*words: str, before: tuple[str, ...] = (), **digests: str) -> list[str]:
    now = config(*words)
    return differences(identity(config(*before)), identity(now, **digests), now)


@pytest.mark.parametrize(
    "word",
    [
        "output_dir=elsewhere",
        "model.path=elsewhere",
        "actor.tensor_model_parallel_size=1",
        "actor.max_tokens_per_microbatch=9999",
        "rollout.max_batch_size=3",
        "reward.num_workers=3",
        "trainer.max_steps=99",
        "trainer.max_sampled_tokens=99",
        "probe.num_prompts=3",
        "trainer.max_time='01:00:00'",
        "checkpoint.save_period=3",
        "data.train.path=elsewhere",
    ],
)
def test_what_may_change(word: str) -> None:
    assert compare(word) == []


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr was 0.0002, is 0.001"),
        ("seed=2", "seed was 1, is 2"),
        ("loss.kl_coef=0.5", "loss.kl_coef was 0.001, is 0.5"),
        ("rollout.temperature=0.5", "rollout.temperature was 1.0, is 0.5"),
        ("actor.use_distributed_optimizer=false", "actor.use_distributed_optimizer was True, is False"),
        ("data.shuffle=false", "data.shuffle was True, is False"),
        ("sampler.rounds=3", "sampler.rounds was 9, is 3"),
    ],
)
def test_what_may_not(word: str, told: str) -> None:
    assert compare(word) == [told]


def test_contents_are_compared_not_paths() -> None:
    found = compare(model="other", training="other", validation="other")
    assert [line.split(" (")[0] for line in found] == [
        "the weights or the tokenizer in model.path changed",
        "the training problems",
        "the validation problems",
    ]


def test_the_length_of_the_run_matters_to_a_decay_over_it() -> None:
    decay = ("optimizer.decay_style=linear",)
    assert compare("trainer.max_steps=99", *decay, before=decay) == ["trainer.max_steps was 30, is 99"]
    fixed = (*decay, "optimizer.decay_steps=20")
    assert compare("trainer.max_steps=99", *fixed, before=fixed) == []


def test_a_key_that_only_one_of_them_knows() -> None:
    now = config()
    saved = identity(now)
    saved["config"]["loss"].pop("kl_coef")
    assert differences(saved, identity(now), now) == ["loss.kl_coef was unknown, is 0.001"]
