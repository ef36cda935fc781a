"""The training loop: one step, top to bottom, the same program on every rank.

Every rank knows all trees of a step, so that advantages, denominators and the schedule of micro-batches are computed
alike everywhere, without further communication. GRPO is this same loop on trees that share nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.methods import Method
from nemo_ibtpo.rollout.transport.protocol import WeightTransport
from nemo_ibtpo.training import refill, updates
from nemo_ibtpo.training.checkpoint_store import CheckpointStore
from nemo_ibtpo.training.idle_steps import IdleSteps
from nemo_ibtpo.training.metrics import (
    advantage_metrics,
    mean_over_updates,
    sampling_metrics,
    training_by_source,
    validation_by_source,
)
from nemo_ibtpo.training.mismatch import total
from nemo_ibtpo.training.output import RunOutput
from nemo_ibtpo.training.run_state import RunState
from nemo_ibtpo.training.sampling import Sampling
from nemo_ibtpo.training.step_clock import StepClock
from nemo_ibtpo.training.stopping import StopConsensus

ACCURACY = "val/accuracy"


@dataclass(frozen=True)
class Parts:
    """What the loop is made of; ``build.py`` builds it.

    Attributes:
        config: of the run.
        sources: names of the data sets of a mixture, by problem id.
        sampling: the engines of all ranks with the verifiers, and the training problems.
        method: which rewards are compared with which.
        actor: the policy that is trained, and the reference policy.
        transport: brings the actor's weights to the engines of all ranks.
        output: metrics, trees, evaluations, models.
        store: checkpoints.
        stop: decides with the other ranks whether to stop.
        clock: seconds of a step's phases.
    """

    config: RunConfig
    sources: Mapping[str, str]
    sampling: Sampling
    method: Method
    actor: MegatronActor
    transport: WeightTransport
    output: RunOutput
    store: CheckpointStore
    stop: StopConsensus
    clock: StepClock


def train(run: Parts, state: RunState) -> None:
    """Train from ``state`` to the end of the run, and export the model.

    An iteration begins with the evaluation of the weights that there are: those of the base policy (logged as step
    0), or of the step before. This is where a run goes on that was stopped between an update and its evaluation.

    Args:
        run: the parts.
        state: of a run that begins or goes on; at any time it is what :meth:`CheckpointStore.save` may save.

    Raises:
        StoppedError: the run was asked to stop, which all ranks agreed on.
        UserError: something that the user can mend, such as an engine that samples another policy.
    """
    config, trainer, clock = run.config, run.config.trainer, run.clock
    idle = IdleSteps()
    if state.step > 0:
        run.transport.publish(run.actor)  # the engines were started with the weights of the base policy

    while True:
        # Evaluate -> log -> save.
        if state.pending is not None:
            metrics, step = state.pending, state.step
            if step == 0 or state.is_done or _is_due(step, trainer.val_period):
                result, measured = run.sampling.evaluate()
                run.output.keep_evaluation(step, result)
                metrics = metrics | measured | validation_by_source(result.scores(), run.sources)
            run.output.log(step, metrics)
            state.evaluated(metrics.get(ACCURACY))
            if step > 0 and _is_due(step, trainer.export_period):
                run.output.export(f"hf_step_{step}")
            if state.is_done or _is_due(step, config.checkpoint.save_period):
                run.store.save(state)
        if state.is_done:
            run.output.export("hf")
            return
        step = state.step + 1
        clock.start()
        run.stop.raise_if_asked()

        # Sample -> score: a tree of reasoning steps for each prompt, every trajectory with its verified reward.
        sampled, counts = run.sampling.training_trees(step)
        trees = refill.to_train(sampled, trainer.num_prompts_per_step)
        metrics = sampling_metrics(sampled, config.ib_score) | counts | training_by_source(sampled, run.sources)
        metrics["train/refilled_prompts"] = float(len(sampled) - len(trees))

        # Advantages: of every node; None for a tree whose rewards do not differ. An update normalizes over its trees.
        size = trainer.num_prompts_per_update
        groups = [trees[first : first + size] for first in range(0, len(trees), size)]
        advantages = [run.method.of_update(group, config.ib_score) for group in groups]
        metrics |= advantage_metrics(trees, list(chain(*advantages)))
        if _is_due(step, config.logger.trees.period):
            with clock.phase("trees", 1, "files"):
                run.output.keep_trees(step, trees, list(chain(*advantages)))

        # Pack -> log-probs. Those of the old policy are needed only where several updates change the actor: the only
        # update of a step starts from the old policy itself.
        packed = [updates.pack(*own, run.actor, config, step) for own in zip(groups, advantages, strict=True)]
        kept = [update for update in packed if update is not None]
        ready = [updates.with_logprobs(update, run.actor, config, clock, old=len(kept) > 1) for update in kept]

        # Update: one optimizer step a group. From the first one to the end of the step there is no safe point.
        run.stop.raise_if_asked()
        done = [updates.train(update, run.method, run.actor, config, clock) for update in ready]
        if done:
            metrics |= total(mismatch for _, mismatch in done).metrics()
        metrics |= mean_over_updates([own for own, _ in done])
        metrics.setdefault("train/lr", run.actor.learning_rate)
        if (warning := idle.note(len(done), metrics)) is not None:
            run.output.say(warning)

        # Refit: the engines get the new weights.
        with clock.phase("refit", 1, "updates"):
            run.transport.publish(run.actor)
        tokens = sum(tree.sampled_tokens for tree in sampled)
        metrics |= clock.metrics(tokens, run.sampling.num_engines) | run.store.progress()
        metrics["train/sampled_tokens"] = float(state.sampled_tokens + tokens)
        state.trained(metrics, tokens)


def _is_due(step: int, period: int) -> bool:
    """Whether something that happens every ``period`` steps, or never if that is 0, happens after this one."""
    return period > 0 and step % period == 0
