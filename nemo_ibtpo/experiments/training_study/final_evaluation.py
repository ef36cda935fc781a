"""The evaluation of what a run of a study has trained: more problems and samples than evaluations along the way."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.experiments.sampling_parts import SamplingParts, open_engine, open_parts
from nemo_ibtpo.experiments.training_study.run_results import FINAL
from nemo_ibtpo.experiments.training_study.study_file import FinalEvaluation, Run
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.tree.steps import make_splitter


class FinalEvaluator:
    """Evaluates trained models; the problems of a task and their verifier are opened once.

    Args:
        settings: how much is sampled.
        console: prints what was read.
        stack: closes the verifiers.
    """

    def __init__(self, settings: FinalEvaluation, console: RunConsole, stack: ExitStack) -> None:
        self._settings = settings
        self._console = console
        self._stack = stack
        self._parts: dict[str, SamplingParts] = {}

    def __call__(self, run: Run) -> None:
        """Sample with the model that the run has written and keep every sample beside it.

        Raises:
            UserError: the model cannot be loaded.
        """
        directory = Path(run.config.output_dir)
        parts = self.open(run)
        config = replace(run.config, model=replace(run.config.model, path=str(directory / "hf")))
        with open_engine(config, parts, directory) as engine:
            engine.set_sampling(replace(engine.sampling, temperature=config.trainer.val_temperature))
            result: EvaluationResult = evaluate(
                parts.problems,
                engine,
                parts.rewards,
                splitter=make_splitter(None, parts.tokenizer),
                samples_per_problem=self._settings.samples_per_prompt,
                max_new_tokens=config.rollout.max_new_tokens,
                seed=config.seed,
                settings={"temperature": config.trainer.val_temperature},
            )
        result.to_jsonl(directory / FINAL)

    def open(self, run: Run) -> SamplingParts:
        """Read the problems of the run's task, if they are not open yet.

        Raises:
            UserError: there are too few of them.
        """
        if run.task.name not in self._parts:
            # The same problems for all runs: all of them in the order of the file, not of a seed.
            config = replace(run.config, data=replace(run.config.data, shuffle=False))
            number = self._settings.num_prompts
            parts = self._stack.enter_context(open_parts(config, "validation", number, self._console))
            parts.rewards.set_problems(parts.problems)
            self._parts[run.task.name] = parts
        return self._parts[run.task.name]
