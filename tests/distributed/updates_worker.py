"""Ranks of test_updates.py: the same trees as the only update of a step and as one of several."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from actor_worker import make_actor, same, weights
from torch import Tensor
from toy_models import random_tree

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.methods import make_method
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.training import updates
from nemo_ibtpo.training.mismatch import Mismatch
from nemo_ibtpo.training.step_clock import StepClock

CONFIG = compose("tiny", ["actor.device=cpu", "actor.max_tokens_per_microbatch=64", "sampler.carry_over=1"])


def update(config: RunConfig, *, old: bool) -> tuple[dict[str, Tensor], dict[str, float], Mismatch]:
    """Weights afterwards, metrics and mismatch of one optimizer step."""
    actor, clock = make_actor((1, 2, False, None), torch.float32, lr=1e-2), StepClock(RunConsole(1))
    rng, method = np.random.default_rng(3), make_method(config.method)
    trees = [random_tree(rng, rollouts=6, prompt_id=str(i)) for i in range(4)]
    for node in (node for tree in trees for node in tree.nodes[1:]):
        node.versions = (1 + node.index % 3,) * len(node.tokens)  # a third is of the policy that is trained
    packed = updates.pack(trees, method.of_update(trees, config.ib_score), actor, config, step=4)
    assert packed is not None
    before = weights(actor)
    try:
        ready = updates.with_logprobs(packed, actor, config, clock, old=old)
        metrics, mismatch = updates.train(ready, method, actor, config, clock)
    except UserError as error:
        assert same(weights(actor), before), "the weights were not left as they were"
        raise RuntimeError(str(error)) from None
    assert not same(weights(actor), before)
    assert ("logprobs" in clock.seconds) is old
    return weights(actor), metrics, mismatch


def refusal(*, old: bool) -> str:
    try:
        update(CONFIG, old=old)  # the trees' log-probabilities are no model's
    except RuntimeError as error:
        return str(error)
    return "no refusal"


def compare() -> dict[str, Any]:
    config = replace(CONFIG, loss=replace(CONFIG.loss, max_token_mult_prob_error=0.0))
    (one, metrics, mismatch), (other, expected, known) = (update(config, old=old) for old in (False, True))
    return {
        "same_weights": same(one, other),
        "metrics_differ": [name for name in expected if metrics[name] != expected[name]],
        "judged": mismatch.judged / mismatch.tokens,
        "mismatch": mismatch.metrics(),
        "expected_mismatch": known.metrics(),
    }


def main() -> None:
    result = compare() | {"refusals": [refusal(old=old) for old in (False, True)]}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, result["refusals"])
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(result | {"refusals": everyone}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
