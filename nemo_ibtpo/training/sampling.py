"""Everything that is sampled in a run: training trees, answers to held-out problems, probe trees.

The ranks that own an engine are dealt the prompts. Each grows the trees of its share, and all ranks get all trees.
With ``sampler.carry_over`` trees outlive a step, and all ranks agree on when it closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedTokenizerBase

from nemo_ibtpo.collectives import Dealing, gather_from_all
from nemo_ibtpo.config.carry_over import policy_version
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.loader import Prompts
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.result import EvaluationResult, merge
from nemo_ibtpo.reporting.progress import Phase
from nemo_ibtpo.rewards.pool import VerifierPool, reward_metrics
from nemo_ibtpo.rollout.engine import EngineStats, RolloutEngine
from nemo_ibtpo.training.metrics import carry_over_metrics, engine_metrics
from nemo_ibtpo.training.probe import probe_metrics, probe_strategy
from nemo_ibtpo.training.refill import further_problems
from nemo_ibtpo.training.step_clock import StepClock
from nemo_ibtpo.training.stopping import StopConsensus
from nemo_ibtpo.tree.branching import BranchingStrategy, make_strategy
from nemo_ibtpo.tree.carry_over import Horizon, grow_until_closed, merge_steps
from nemo_ibtpo.tree.growth import GrowthProgress, GrowthTask, grow
from nemo_ibtpo.tree.steps import Splitter, make_splitter
from nemo_ibtpo.tree.tree import Tree
from nemo_ibtpo.tree.trees_in_flight import TreesInFlight

_START_DELAY = 64  # tokens, of long responses; more than engines draw until all have heard of the end of a tree
_EXCHANGE_PERIOD_S = 0.05  # some decode steps of an engine; what it draws too much meanwhile is dropped


class Sampling:
    """Samples on the engines of all ranks, and has the results verified.

    All methods are collectives over all ranks, return the same on each, and raise ``StoppedError`` on all of them if
    one was asked to stop.

    Args:
        config: of the run.
        engine: of this rank, or its stand-in; sleeps between the sampling of a step and the next weights.
        engines: deals prompts over the ranks that own an engine.
        rewards: verifies this rank's responses.
        prompts: the training problems, in the order in which they are drawn.
        in_flight: trees that outlive a step; None if there are none.
        validation: the held-out problems.
        tokenizer: of the model.
        stop: decides with the other ranks.
        clock: measures the phases.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: RolloutEngine,
        engines: Dealing,
        rewards: VerifierPool,
        prompts: Prompts,
        in_flight: TreesInFlight | None,
        validation: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        stop: StopConsensus,
        clock: StepClock,
    ) -> None:
        self._config = config
        self._engine = engine
        self._engines = engines
        self._rewards = rewards
        self._prompts = prompts
        self._in_flight = in_flight
        self._validation = validation[: config.trainer.val_num_prompts]
        self._stop = stop
        self._clock = clock
        self._training_sampling = engine.sampling
        self._strategy = make_strategy(config.sampler, config.ib_score, config.rollout.max_new_tokens)
        self._splitter = make_splitter(config.sampler.segment_tokens, tokenizer)
        self._probe_splitter = make_splitter(None, tokenizer)

    @property
    def num_engines(self) -> int:
        """Engines of all ranks together."""
        return len(self._engines.ranks)

    def training_trees(self, step: int) -> tuple[list[Tree], dict[str, float]]:
        """The trees of a step, in the order of their prompts, rewards known; and what verifiers and engines counted.

        Prompts are drawn for it, with ``trainer.refill`` until enough of them are mixed. The engine sleeps
        afterwards, until it gets new weights.
        """
        before = replace(self._engine.stats)
        places = range(self._config.trainer.num_prompts_per_step)
        with self._clock.phase("rollout", len(self._engines.mine(places)), "trees") as phase:
            if self._in_flight is None:
                trees, metrics = self._whole_trees(step, phase)
            else:
                trees, metrics = self._trees_in_flight(self._in_flight, step, phase)
            return trees, self._counted(before) | metrics

    def _counted(self, before: EngineStats) -> dict[str, float]:
        """What verifiers and engines of all ranks have counted since then."""
        stats = self._engine.stats
        counted = (
            self._rewards.take_counts(),
            stats.prefill_tokens - before.prefill_tokens,
            stats.cached_prefix_tokens - before.cached_prefix_tokens,
        )
        counts, prefill, cached = zip(*self._engines.gather([counted], self.num_engines), strict=True)
        return reward_metrics(counts) | engine_metrics(sum(prefill), sum(cached))

    def evaluate(self) -> tuple[EvaluationResult, dict[str, float]]:
        """Samples of the held-out problems at ``trainer.val_temperature``, and the metrics of the policy.

        These are accuracy (avg@k) and, where a recipe asks for it, what probe trees show.
        """
        trainer = self._config.trainer
        mine = self._engines.mine(self._validation)
        self._rewards.set_problems(mine)
        self._engine.set_sampling(replace(self._training_sampling, temperature=trainer.val_temperature))
        with self._clock.phase("validation", len(mine), "problems") as phase:
            with self._stop.while_sampling(self._engine) as source:
                result = evaluate(
                    mine,
                    source,
                    self._rewards,
                    splitter=self._splitter,
                    samples_per_problem=trainer.val_samples_per_prompt,
                    max_new_tokens=self._config.rollout.max_new_tokens,
                    seed=self._config.seed,
                    settings=asdict(self._engine.sampling) | {"prompt_format": self._config.data.prompt_format},
                    on_progress=_advance(phase),
                )
            result = merge(self._engines.gather([result], self.num_engines))
        self._rewards.take_counts()  # validation's are in the result
        self._engine.set_sampling(self._training_sampling)
        metrics = {f"val/{name}": value for name, value in result.metrics().items()}
        metrics["time/validation_s"] = self._clock.seconds["validation"]
        if self._config.probe.num_prompts:
            metrics |= self._probe()
        return result, metrics

    def _probe(self) -> dict[str, float]:
        """Statistics of trees that are grown alike for every policy, from the same seeds each time."""
        config = self._config
        problems = self._validation[: config.probe.num_prompts]
        strategy = probe_strategy(config.probe, config.sampler, config.rollout.max_new_tokens)
        with self._clock.phase("probe", len(self._engines.mine(problems)), "trees") as phase:
            trees = self._grow(problems, strategy, self._probe_splitter, config.seed, phase, merge=True)
            trees = self._engines.gather(trees, len(problems))
        self._rewards.take_counts()
        return probe_metrics(trees, config.probe.ib_score)

    def _grow(
        self,
        problems: Sequence[Problem],
        strategy: BranchingStrategy,
        splitter: Splitter,
        seed: int,
        phase: Phase,
        *,
        merge: bool,
    ) -> list[Tree]:
        """Trees of this rank's share of the problems."""
        mine = self._engines.mine(problems)
        self._rewards.set_problems(mine)
        with self._stop.while_sampling(self._engine) as source:
            return grow(
                [GrowthTask(problem.problem_id, problem.prompt_tokens, merge) for problem in mine],
                source=source,
                rewards=self._rewards,
                strategy=strategy,
                splitter=splitter,
                max_new_tokens=self._config.rollout.max_new_tokens,
                seed=seed,
                max_in_flight=self._config.sampler.max_trees_in_flight,
                on_progress=_advance(phase),
            )

    def _whole_trees(self, step: int, phase: Phase) -> tuple[list[Tree], dict[str, float]]:
        """Trees that are begun and completed in a step, of all ranks."""
        trainer, seed = self._config.trainer, step_seed(self._config.seed, self._config.trainer.rollout_seed, step)
        problems, trees = self._prompts.next(trainer.num_prompts_per_step), list[Tree]()
        while problems:
            own = self._grow(problems, self._strategy, self._splitter, seed, phase, merge=self._config.sampler.merge)
            trees += self._engines.gather(own, len(problems))
            problems = further_problems(trees, self._prompts, trainer)
        self._engine.sleep()
        return trees, {}

    def _trees_in_flight(
        self, in_flight: TreesInFlight, step: int, phase: Phase
    ) -> tuple[list[Tree], dict[str, float]]:
        """The first complete trees of all ranks, and how old their tokens are; the others are carried over."""
        config, missing, known = self._config, in_flight.missing, [tree.prompt_id for tree in in_flight.trees]
        new = [problem.problem_id for problem in self._prompts.next(missing, apart_from=known)] if missing else []
        closing = in_flight.begin(
            new, step_seed(config.seed, config.trainer.rollout_seed, step), policy_version(config, step)
        )
        mine = dict(self._engines.mine(list(enumerate(in_flight.trees))))
        problems = [self._prompts.problem(tree.prompt_id) for tree in mine.values()]
        self._rewards.set_problems(problems)
        tasks = [GrowthTask(problem.problem_id, problem.prompt_tokens, config.sampler.merge) for problem in problems]
        own = grow_until_closed(
            mine,
            {task.prompt_id: task for task in tasks},
            closing,
            source=self._engine,
            rewards=self._rewards,
            strategy=self._strategy,
            splitter=self._splitter,
            max_new_tokens=config.rollout.max_new_tokens,
            exchange=self._exchange,
            exchange_period_s=_EXCHANGE_PERIOD_S,
            start_delay=min(_START_DELAY, config.rollout.max_new_tokens // 32),
            on_turn=lambda complete: phase.advance(complete - phase.done),
        )
        self._engine.sleep()
        ended = merge_steps(gather_from_all(own))
        in_flight.end(ended.carried)
        return list(ended.closed.values()), carry_over_metrics(ended, len(closing.waited_for), config, step)

    def _exchange(self, horizon: Horizon) -> list[Horizon]:
        """What all ranks know of a step; a safe point."""
        self._stop.raise_if_asked()
        return gather_from_all(horizon)


def _advance(phase: Phase) -> Callable[[GrowthProgress], None]:
    before = phase.done
    return lambda done: phase.advance(before + done.trees - phase.done)


def step_seed(seed: int, rollout_seed: int, step: int) -> int:
    """The seed of the trees that a step begins: steps, runs, and repetitions of a run all have their own."""
    return (rollout_seed << 64) + (seed << 32) + step
