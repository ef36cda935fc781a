"""From trees and their advantages to an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.config.carry_over import policy_version
from nemo_ibtpo.config.schema import LossConfig, RunConfig
from nemo_ibtpo.losses import Loss, LossInputs, LossOutput, make_loss, with_importance
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.methods import Advantages, Method
from nemo_ibtpo.methods.credit import credit_nodes, loss_denominator
from nemo_ibtpo.training.metrics import update_metrics
from nemo_ibtpo.training.mismatch import Mismatch, measure, measure_tokens, refuse_mismatch, total
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
        mismatch: of engine and actor, over all ranks; None until the old policy's log-probabilities are known.
    """

    plan: Schedule
    batches: list[PackedBatch]
    denominator: float
    mismatch: Mismatch | None = None


def pack(
    trees: Sequence[Tree],
    advantages: Sequence[Advantages | None],
    actor: MegatronActor,
    config: RunConfig,
    step: int,
) -> Update | None:
    """Pack trees into the micro-batches of one optimizer step; None if there is nothing to learn from any of them.

    Every rank computes the same schedule without communication.

    Args:
        step: the training step.
    """
    credits = [
        credit_nodes(tree, advantage, config.loss.normalization, config.loss.token_weight)
        for tree, advantage in zip(trees, advantages, strict=True)
    ]
    kept = [i for i, advantage in enumerate(advantages) if advantage is not None]
    if not kept:
        return None
    denominator = loss_denominator(trees, advantages, credits, config.loss.denominator, config.rollout.max_new_tokens)
    kept_trees, kept_credits = [trees[i] for i in kept], [credits[i] for i in kept]
    plan = schedule(
        map(layout, kept_trees),
        max_tokens=config.actor.max_tokens_per_microbatch,
        num_ranks=actor.data_parallel_size,
        multiple_of=actor.microbatch_multiple,
        attention_weight=actor.attention_weight,
        whole_runs=make_loss(config.loss).whole_runs,
    )
    version = policy_version(config, step) if config.sampler.carry_over else None
    batches = pack_microbatches(plan.ranks[actor.data_parallel_rank], kept_trees, kept_credits, version)
    return Update(plan, batches, denominator)


def with_logprobs(update: Update, actor: MegatronActor, config: RunConfig, clock: StepClock, *, old: bool) -> Update:
    """The update with the log-probabilities that the loss compares with; a collective over all ranks.

    Args:
        old: compute those of the actor as it is now, which the only update of a step has no need of, and measure how
            far the engine that sampled is from it.

    Raises:
        UserError: the engine is too far from the actor.
    """
    batches, mismatch = update.batches, None
    actor.prepare_for_inference()
    if old:
        with clock.phase("logprobs", len(batches), "micro-batches"):
            logprobs = actor.logprobs(batches)
        batches = [replace(batch, old_logprobs=own) for batch, own in zip(batches, logprobs, strict=True)]
        mismatch = total(gather_from_all(measure(batches, config.loss.tis_cap)))
        refuse_mismatch(mismatch, config.loss.max_token_mult_prob_error)
    if config.loss.kl_coef:
        with clock.phase("reference_logprobs", len(batches), "micro-batches"):
            reference = actor.reference_logprobs(batches)
        batches = [replace(batch, reference_logprobs=own) for batch, own in zip(batches, reference, strict=True)]
    actor.finish_inference()
    return replace(update, batches=batches, mismatch=mismatch)


def train(
    update: Update, method: Method, actor: MegatronActor, config: RunConfig, clock: StepClock
) -> tuple[dict[str, float], Mismatch]:
    """One optimizer step; its metrics, and the mismatch of engine and actor. A collective over all ranks.

    Raises:
        UserError: the engine is too far from the actor, or the loss or a gradient is not finite; the weights are
            left as they were.
    """
    loss = with_importance(method.with_term(make_loss(config.loss)), config.loss.tis_cap)
    gate = None if update.mismatch is not None else MismatchGate(config.loss)
    actor.prepare_for_training()
    with clock.phase("train", len(update.batches), "micro-batches"):
        if gate is None:
            sums = actor.train_step(update.batches, loss, update.denominator)
        else:
            sums = actor.train_step(update.batches, gate.watching(loss), update.denominator, before_step=gate.check)
    actor.finish_training()
    mismatch = update.mismatch if gate is None else gate.mismatch
    assert mismatch is not None
    return update_metrics(sums, update.plan), mismatch


class MismatchGate:
    """Measures the mismatch of engine and actor in the training pass itself, and stops before the optimizer's step.

    Attributes:
        mismatch: over all ranks; None before :meth:`check`.
    """

    def __init__(self, config: LossConfig) -> None:
        self.mismatch: Mismatch | None = None
        self._config = config
        self._seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def watching(self, loss: Loss) -> Loss:
        """The same loss, which notes the log-probabilities of old and behaviour policy."""

        def watched(inputs: LossInputs) -> LossOutput:
            self._seen.append((inputs.old_logprobs, inputs.behaviour_logprobs, inputs.lag))
            return loss(inputs)

        return watched

    def check(self) -> None:
        """Measure over all ranks; those that saw nothing, such as all but the last pipeline stage, take part.

        Raises:
            UserError: the engine is too far from the actor.
        """
        own = total(
            measure_tokens(
                old.cpu().numpy(),
                behaviour.cpu().numpy(),
                self._config.tis_cap,
                None if lag is None else lag.cpu().numpy(),
            )
            for old, behaviour, lag in self._seen
        )
        self.mismatch = total(gather_from_all(own))
        refuse_mismatch(self.mismatch, self._config.max_token_mult_prob_error)
