"""Trees carried over a step (``sampler.carry_over``): how many there are, and which settings contradict them.

Needs no torch; the same on every rank.
"""

from __future__ import annotations

import math

from nemo_ibtpo.config.mixtures import training_parts
from nemo_ibtpo.config.refusals import refuse_if
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.tree.trees_in_flight import TreesInFlight, least_policy_lag, most_trees_known


def make_trees_in_flight(config: RunConfig) -> TreesInFlight | None:
    """Those of a run that begins; None if each step trains the trees that it began with."""
    if config.sampler.carry_over == 0:
        return None
    per_step = config.trainer.num_prompts_per_step
    return TreesInFlight(per_step, trees_in_flight(config), config.sampler.max_policy_lag, updates_per_step(config))


def trees_in_flight(config: RunConfig) -> int:
    """Trees that grow at once, on all engines together."""
    per_step = config.trainer.num_prompts_per_step
    return per_step + math.floor(config.sampler.carry_over * per_step + 1e-6)


def updates_per_step(config: RunConfig) -> int:
    """Optimizer steps of a training step."""
    return config.trainer.num_prompts_per_step // config.trainer.num_prompts_per_update


def policy_version(config: RunConfig, step: int) -> int:
    """The version of the policy that a training step begins with: optimizer steps so far.

    An update of which every group was left out counts as well: the weights did not change, but all ranks, and a run
    that was resumed, know its number without being told.
    """
    return (step - 1) * updates_per_step(config)


def check_carry_over(config: RunConfig) -> None:
    """The trees in flight against the step, the loss and, where its size is known, the training set.

    Raises:
        UserError: for the first thing that is wrong.
    """
    sampler, per_step = config.sampler, config.trainer.num_prompts_per_step
    if sampler.carry_over == 0:
        return
    where = f"sampler.carry_over={sampler.carry_over:g} with trainer.num_prompts_per_step={per_step}"
    in_flight = trees_in_flight(config)
    refuse_if(
        in_flight == per_step,
        f"{where} puts no whole tree more in flight; use at least {math.ceil(1000 / per_step) / 1000}, or 0 to carry "
        "none over",
    )
    refuse_if(
        config.loss.tis_cap == 0,
        f"sampler.carry_over={sampler.carry_over:g} trains tokens of older policies, which loss.tis_cap=0 does not "
        "weigh; set loss.tis_cap to at least 1, such as 2, or sampler.carry_over to 0",
    )
    rollout = config.rollout
    refuse_if(
        rollout.top_p < 1 or rollout.top_k > 0,
        f"rollout.top_p={rollout.top_p} with rollout.top_k={rollout.top_k} draws tokens from kept sets, which trees "
        f"do not carry over; use top_p=1 and top_k=0, or set sampler.carry_over={sampler.carry_over:g} to 0",
    )
    refuse_if(
        config.trainer.refill > 0,
        f"trainer.refill={config.trainer.refill} replaces prompts within a step, sampler.carry_over="
        f"{sampler.carry_over:g} closes a step when its number of trees is complete; set one of them to 0",
    )
    least = least_policy_lag(per_step, in_flight, updates_per_step(config))
    refuse_if(
        sampler.max_policy_lag < least,
        f"sampler.max_policy_lag={sampler.max_policy_lag} is too small: {where} leaves {in_flight - 1} trees, which "
        f"are trained within {least} optimizer steps ({updates_per_step(config)} a step); use at least {least}",
    )
    sizes = [part.dataset.size for part in training_parts(config.data)]
    if None not in sizes:
        check_enough_problems(config, sum(size or 0 for size in sizes))


def check_enough_problems(config: RunConfig, problems: int) -> None:
    """Trees in flight are of different prompts, or two of them could be the same tree.

    Args:
        problems: of the training set.

    Raises:
        UserError: there are too few.
    """
    if config.sampler.carry_over == 0:
        return
    per_step = config.trainer.num_prompts_per_step
    known = most_trees_known(per_step, trees_in_flight(config))
    refuse_if(
        problems < known,
        f"sampler.carry_over={config.sampler.carry_over:g} with trainer.num_prompts_per_step={per_step} draws "
        f"{known} different prompts for the first step, but there are {problems} training problems; lower either, or "
        "set sampler.carry_over to 0",
    )
