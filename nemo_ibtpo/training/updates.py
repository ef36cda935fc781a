"""From trees and their advantages to an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_ibtpo.algorithms.metrics import update_metrics
from nemo_ibtpo.algorithms.mismatch import Mismatch, importance_weighted, measure, refuse_mismatch, total
from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.losses import ClippedLoss
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.methods import Advantages, Method
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.training.step_clock import StepClock
from nemo_ibtpo.tree.microbatches import Schedule, pack_microbatches, schedule
from nemo_ibtpo.tree.packing import PackedBatch, layout
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True)
class Update:
    """What one optimizer step trains on.

    Attributes:
        plan: micro-batches of all data-parallel ranks.
        batches: this rank's; once the log-probabilities are known, with those that the loss compares with.
        denominator: what the loss is divided by, over all ranks.
        mismatch: of engine and actor, over all ranks; measured with the log-probabilities.
    """

    plan: Schedule
    batches: list[PackedBatch]
    denominator: float
    mismatch: Mismatch = field(default_factory=Mismatch)


def pack(
    trees: Sequence[Tree], advantages: Sequence[Advantages | None], actor: MegatronActor, config: RunConfig
) -> Update | None:
    """Pack trees into the micro-batches of one optimizer step; None if there is nothing to learn from any of them.

    Every rank computes the same schedule without communication.
    """
    credits = [
        credit_nodes(tree, advantage, config.loss.normalization, config.loss.token_weight)
        for tree, advantage in zip(trees, advantages, strict=True)
    ]
    kept = [(tree, credit) for tree, credit in zip(trees, credits, strict=True) if credit.denominator > 0]
    if not kept:
        return None
    kept_trees, kept_credits = zip(*kept, strict=True)
    plan = schedule(
        map(layout, kept_trees),
        max_tokens=config.actor.max_tokens_per_microbatch,
        num_ranks=actor.data_parallel_size,
        multiple_of=actor.microbatch_multiple,
    )
    batches = pack_microbatches(plan.ranks[actor.data_parallel_rank], kept_trees, kept_credits)
    return Update(plan, batches, sum(credit.denominator for credit in kept_credits))


def with_logprobs(update: Update, actor: MegatronActor, config: RunConfig, clock: StepClock) -> Update:
    """The update with the log-probabilities of the old policy, the actor as it is now, and of the reference policy.

    A collective over all ranks.

    Raises:
        UserError: the engine that sampled the trees is too far from the actor.
    """
    batches = update.batches
    actor.prepare_for_inference()
    with clock.phase("logprobs", len(batches), "micro-batches"):
        old = actor.logprobs(batches)
    batches = [replace(batch, old_logprobs=own) for batch, own in zip(batches, old, strict=True)]
    if config.loss.kl_coef:
        with clock.phase("reference_logprobs", len(batches), "micro-batches"):
            reference = actor.reference_logprobs(batches)
        batches = [replace(batch, reference_logprobs=own) for batch, own in zip(batches, reference, strict=True)]
    actor.finish_inference()
    mismatch = total(gather_from_all(measure(batches, config.loss.tis_cap)))
    refuse_mismatch(mismatch, config.loss.max_token_mult_prob_error)
    if cap := config.loss.tis_cap:
        batches = [importance_weighted(batch, cap) for batch in batches]
    return replace(update, batches=batches, mismatch=mismatch)


def train(
    update: Update, method: Method, actor: MegatronActor, config: RunConfig, clock: StepClock
) -> dict[str, float]:
    """One optimizer step; its metrics. A collective over all ranks."""
    loss = method.with_term(ClippedLoss(config.loss))
    actor.prepare_for_training()
    with clock.phase("train", len(update.batches), "micro-batches"):
        sums = actor.train_step(update.batches, loss, update.denominator)
    actor.finish_training()
    return update_metrics(sums, update.plan)
