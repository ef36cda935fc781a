"""The IB-TPO training loop.

One step, the same program on every rank::

    prompts -> growth on this rank's engine -> trees of all ranks -> advantages -> credit per token
            -> schedule of micro-batches -> log-probs (old policy, reference policy) -> optimizer steps
            -> weights -> engine

Every rank knows all trees of a step, so that advantages, denominators and the schedule are computed alike
everywhere without further communication. GRPO is this same loop on trees that share nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

from torch import Tensor

from nemo_ibtpo.algorithms.checkpointing import ACCURACY, Checkpointer, StoppedError
from nemo_ibtpo.algorithms.metrics import (
    advantage_metrics,
    engine_metrics,
    mean_over_updates,
    peak_memory,
    sampling_metrics,
    update_metrics,
)
from nemo_ibtpo.algorithms.mismatch import Mismatch, importance_weighted, measure, refuse_mismatch, total
from nemo_ibtpo.algorithms.probe import probe_metrics, probe_strategy
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.result import merge
from nemo_ibtpo.inspection.keeping import TreeKeeper
from nemo_ibtpo.losses import ClippedLoss
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.collectives import Dealing, gather_from_all
from nemo_ibtpo.methods import Advantages, Method, per_node
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.reporting.metrics import MetricsWriter
from nemo_ibtpo.reporting.progress import Phase, RunConsole
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.engine import RolloutEngine, SamplingParams
from nemo_ibtpo.tree.branching import BranchingStrategy
from nemo_ibtpo.tree.growth import GrowthProgress, GrowthTask, grow
from nemo_ibtpo.tree.microbatches import Schedule, pack_microbatches, schedule
from nemo_ibtpo.tree.packing import PackedBatch, layout
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True)
class Update:
    """What one optimizer step trains on.

    Attributes:
        plan: micro-batches of all data-parallel ranks.
        batches: this rank's, with the log-probabilities of the policies that the loss compares with.
        denominator: what the loss is divided by, over all ranks.
        mismatch: of engine and actor, over all ranks.
    """

    plan: Schedule
    batches: list[PackedBatch]
    denominator: float
    mismatch: Mismatch


@dataclass
class IBTPOTrainer:
    """Trains the actor on trees grown by the engine.

    Attributes:
        engines: deals prompts over the ranks that own an engine; on the others ``engine`` is a stand-in.
        weights: the actor's, on their way to the engines; a collective over all ranks.
        sampling: of training rollouts; evaluation changes the temperature only.
        splitter, probe_splitter: cut responses into the steps of training trees and of probe trees.
        checkpoints: saves, restores and hears of requests to stop.
        writer: on rank 0 alone.
        keeper: of trees, on rank 0 alone.
        export: writes the model as a Hugging Face directory of that name; called on all ranks.
    """

    config: RunConfig
    engines: Dealing
    actor: MegatronActor
    engine: RolloutEngine
    weights: Callable[[], Iterable[tuple[str, Tensor]]]
    sampling: SamplingParams
    strategy: BranchingStrategy
    method: Method
    splitter: Splitter
    probe_splitter: Splitter
    rewards: VerifierPool
    prompts: PromptLoader
    validation: Sequence[Problem]
    checkpoints: Checkpointer
    writer: MetricsWriter | None
    keeper: TreeKeeper | None
    console: RunConsole
    export: Callable[[str], None]
    _seconds: dict[str, float] = field(default_factory=dict)

    def fit(self) -> None:
        """Run the steps after the checkpoint's and export the model.

        Measures the policy before the first step, every ``val_period`` steps and after the last.

        Raises:
            StoppedError: the run was asked to stop; what has been trained is saved.
        """
        done, unlogged = self.checkpoints.step, self.checkpoints.unlogged
        try:
            if done:
                self._refit()
            else:
                self._log(0, self.measure_policy(0))
            if unlogged is not None:
                self._close_step(done, unlogged)
            while not self.checkpoints.is_done:
                step = self.checkpoints.step + 1
                self._close_step(step, self.step(step))
                self.checkpoints.save_if_due()
        except StoppedError:
            self.checkpoints.save()
            raise
        self.export("hf")

    def step(self, step: int) -> dict[str, float]:
        """Sample and train; the metrics but those of the evaluation."""
        self._seconds, started = {}, time.perf_counter()
        self.checkpoints.raise_if_stopped()
        trees, counts = self.sample(step)
        metrics = sampling_metrics(trees, self.config.ib_score) | counts
        groups = list(_groups(trees, self.config.trainer.num_prompts_per_update))
        advantages = [self.method.of_update(group, self.config.ib_score) for group in groups]
        metrics |= advantage_metrics(trees, list(chain(*advantages)))
        self._keep_trees(step, trees, list(chain(*advantages)))
        # All log-probabilities of the old policy come before the first update changes it.
        updates = [
            update
            for group, own in zip(groups, advantages, strict=True)
            if (update := self.prepare(group, own)) is not None
        ]
        self.checkpoints.raise_if_stopped()
        if updates:
            metrics |= total(update.mismatch for update in updates).metrics()
        metrics |= mean_over_updates([self.update(update) for update in updates])
        self._refit()
        sampled = sum(tree.sampled_tokens for tree in trees)
        metrics |= self._timing(sampled, time.perf_counter() - started)
        total_sampled = self.checkpoints.sampled_tokens + sampled
        metrics["train/sampled_tokens"] = float(total_sampled)
        self.checkpoints.end_of_step(step, metrics, None, total_sampled)
        return metrics

    def sample(self, step: int) -> tuple[list[Tree], dict[str, float]]:
        """Grow trees on this rank's share of the prompts; those of all ranks, and what verifiers and engines counted.

        The engine sleeps afterwards, until it gets new weights.
        """
        problems = self.prompts.next(self.config.trainer.num_prompts_per_step)
        before = replace(self.engine.stats)
        with self._phase("rollout", len(self.engines.mine(problems)), "trees") as phase:
            trees = self._grow(problems, self.strategy, self.splitter, _step_seed(self.config.seed, step), phase)
            self.engine.sleep()
            stats = self.engine.stats
            own = self.rewards.take_counts() | {
                "prefill": stats.prefill_tokens - before.prefill_tokens,
                "cached": stats.cached_prefix_tokens - before.cached_prefix_tokens,
            }
            everyone = self.engines.gather([own], len(self.engines.ranks))
            sums = {name: sum(counts[name] for counts in everyone) for name in own}
            hits = engine_metrics(sums.pop("prefill"), sums.pop("cached"))
            verdicts = {f"reward/{name}": float(count) for name, count in sums.items()}
            return self.engines.gather(trees, len(problems)), verdicts | hits

    def prepare(self, trees: Sequence[Tree], advantages: Sequence[Advantages | None]) -> Update | None:
        """Turn trees into micro-batches with everything the loss needs; None if every group is dropped."""
        config = self.config
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
            num_ranks=self.actor.data_parallel_size,
            multiple_of=self.actor.microbatch_multiple,
        )
        mine = plan.ranks[self.actor.data_parallel_rank]
        batches = self._with_logprobs(pack_microbatches(mine, kept_trees, kept_credits))
        mismatch = total(gather_from_all(measure(batches, config.loss.tis_cap)))
        refuse_mismatch(mismatch, config.loss.max_token_mult_prob_error)
        if cap := config.loss.tis_cap:
            batches = [importance_weighted(batch, cap) for batch in batches]
        return Update(plan, batches, sum(credit.denominator for credit in kept_credits), mismatch)

    def update(self, update: Update) -> dict[str, float]:
        """One optimizer step."""
        loss = self.method.with_term(ClippedLoss(self.config.loss))
        self.actor.prepare_for_training()
        with self._phase("train", len(update.batches), "micro-batches"):
            sums = self.actor.train_step(update.batches, loss, update.denominator)
        self.actor.finish_training()
        return update_metrics(sums, update.plan)

    def validate(self, step: int) -> dict[str, float]:
        """avg@k on the held-out problems under the current weights; every sample is kept on disk."""
        trainer = self.config.trainer
        mine = self.engines.mine(self.validation)
        self.rewards.set_problems(mine)
        self.engine.set_sampling(replace(self.sampling, temperature=trainer.val_temperature))
        with self._phase("validation", len(mine), "problems") as phase:
            with self._all_or_none():
                result = evaluate(
                    mine,
                    self.checkpoints.interruptible(self.engine),
                    self.rewards,
                    splitter=self.splitter,
                    samples_per_problem=trainer.val_samples_per_prompt,
                    max_new_tokens=self.config.rollout.max_new_tokens,
                    seed=self.config.seed,
                    settings=asdict(self.engine.sampling) | {"prompt_format": self.config.data.prompt_format},
                    on_progress=_advance(phase),
                )
            result = merge(self.engines.gather([result], len(self.engines.ranks)))
        self.rewards.take_counts()  # validation's are in the result
        self.engine.set_sampling(self.sampling)
        if self.writer is not None:
            result.to_jsonl(Path(self.config.output_dir) / "validation" / f"step_{step}.jsonl")
        return {f"val/{name}": value for name, value in result.metrics().items()}

    def measure_policy(self, step: int) -> dict[str, float]:
        """Accuracy on the held-out problems, and what probe trees show, both under the current weights."""
        metrics = self.validate(step)
        metrics["time/validation_s"] = self._seconds["validation"]
        if self.config.probe.num_prompts:
            metrics |= self.probe()
        return metrics

    def probe(self) -> dict[str, float]:
        """Statistics of trees that are grown alike for every policy, from the same seeds each time."""
        config = self.config
        problems = self.validation[: config.probe.num_prompts]
        strategy = probe_strategy(config.probe, config.sampler, config.rollout.max_new_tokens)
        with self._phase("probe", len(self.engines.mine(problems)), "trees") as phase:
            trees = self._grow(problems, strategy, self.probe_splitter, config.seed, phase)
            trees = self.engines.gather(trees, len(problems))
        self.rewards.take_counts()
        return probe_metrics(trees, config.probe.ib_score)

    def _grow(
        self, problems: Sequence[Problem], strategy: BranchingStrategy, splitter: Splitter, seed: int, phase: Phase
    ) -> list[Tree]:
        """Trees of this rank's share of the problems."""
        mine = self.engines.mine(problems)
        self.rewards.set_problems(mine)
        with self._all_or_none():
            return grow(
                [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in mine],
                source=self.checkpoints.interruptible(self.engine),
                rewards=self.rewards,
                strategy=strategy,
                splitter=splitter,
                max_new_tokens=self.config.rollout.max_new_tokens,
                seed=seed,
                max_in_flight=self.config.sampler.max_trees_in_flight,
                on_progress=_advance(phase),
            )

    def _with_logprobs(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """The micro-batches with the log-probabilities of the policies that the loss compares with."""
        self.actor.prepare_for_inference()
        with self._phase("logprobs", len(batches), "micro-batches"):
            old = self.actor.logprobs(batches)
        batches = [replace(batch, old_logprobs=own) for batch, own in zip(batches, old, strict=True)]
        if self.config.loss.kl_coef:
            with self._phase("reference_logprobs", len(batches), "micro-batches"):
                reference = self.actor.reference_logprobs(batches)
            batches = [replace(b, reference_logprobs=own) for b, own in zip(batches, reference, strict=True)]
        self.actor.finish_inference()
        return batches

    @contextmanager
    def _phase(self, name: str, total: int, unit: str) -> Iterator[Phase]:
        started = time.perf_counter()
        with self.console.phase(name, total, unit) as phase:
            yield phase
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def _timing(self, sampled: int, seconds: float) -> dict[str, float]:
        memory = gather_from_all(peak_memory())
        return {f"time/{name}_s": value for name, value in self._seconds.items()} | {
            "perf/step_s": seconds,
            "perf/tokens_per_s": sampled / seconds,
            "perf/tokens_per_s_per_rank": sampled / seconds / len(memory),
            "perf/rollout_tokens_per_s_per_engine": sampled / self._seconds["rollout"] / len(self.engines.ranks),
            **{name: max(own[name] for own in memory) for name in memory[0]},
        }

    def _keep_trees(self, step: int, trees: Sequence[Tree], advantages: Sequence[Advantages | None]) -> None:
        """Write trees for people to look at, if the step is due."""
        period = self.config.logger.trees.period
        if period and step % period == 0:
            with self._phase("trees", 1, "files"):
                if self.keeper is not None:
                    own = [per_node(tree, advantage) for tree, advantage in zip(trees, advantages, strict=True)]
                    self.keeper.keep(step, trees, own)

    def _refit(self) -> None:
        with self._phase("refit", 1, "updates"):
            self.engine.update_weights(self.weights())

    def _close_step(self, step: int, metrics: dict[str, float]) -> None:
        """Evaluate if it is time to, then log and export."""
        trainer = self.config.trainer
        if self.checkpoints.is_done or (trainer.val_period and step % trainer.val_period == 0):
            metrics |= self.measure_policy(step)
        self._log(step, metrics)
        self.checkpoints.end_of_step(step, None, metrics.get(ACCURACY), self.checkpoints.sampled_tokens)
        if trainer.export_period and step % trainer.export_period == 0:
            self.export(f"hf_step_{step}")

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Sampling that this rank may give up: the others hear of it before they wait for its results."""
        with suppress(StoppedError):
            yield
        self.checkpoints.raise_if_stopped()

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, metrics)
        self.console.step(step, self.config.trainer.max_steps, metrics)


def _advance(phase: Phase) -> Callable[[GrowthProgress], None]:
    return lambda done: phase.advance(done.trees - phase.done)


def _groups(trees: Sequence[Tree], size: int) -> Iterator[Sequence[Tree]]:
    return (trees[start : start + size] for start in range(0, len(trees), size))


def _step_seed(seed: int, step: int) -> int:
    # Steps of a run and runs with other seeds get other rollouts.
    return (seed << 32) + step
