"""What a run leaves in ``output_dir`` while it trains; only rank 0 writes, except for the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from nemo_ibtpo.collectives import from_rank_0
from nemo_ibtpo.config.loader import to_yaml
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.inspection.keeping import TreeKeeper
from nemo_ibtpo.inspection.run_data import write_questions
from nemo_ibtpo.methods import Advantages, per_node
from nemo_ibtpo.reporting.metrics import FILE_NAME, MetricsWriter, drop_metrics_after
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.reporting.trackers import make_trackers
from nemo_ibtpo.tree.tree import Tree


class RunOutput:
    """Metrics, trees, evaluations and models of a run.

    Args:
        config: of the run.
        tokenizer: of the model.
        export: writes the model of this moment into a directory; a collective over all ranks.
        problems: of training, which the kept trees are shown with.
        console: of this rank.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        export: Callable[[Path], None],
        console: RunConsole,
    ) -> None:
        self._directory = Path(config.output_dir)
        self._config = config
        self._console = console
        self._export = export
        self._writer: MetricsWriter | None = None
        self._keeper = TreeKeeper(
            TreeArchive(self._directory),
            config.logger.trees,
            config.ib_score,
            {**asdict(config.ib_score), **config.method},
            {problem.problem_id: problem for problem in problems},
            partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        )

    def open(self, logged_step: int, validation: Sequence[Problem], stack: ExitStack) -> None:
        """Start to write, after the last step that is to stay logged.

        Args:
            logged_step: what was written of later steps is removed, so that nothing is there twice; -1 removes all.
            validation: the held-out problems.
            stack: closes what is opened here.

        Raises:
            UserError: a file or a tracker refuses.
        """
        from_rank_0(partial(self._forget_after, logged_step))
        if dist.get_rank() == 0:
            (self._directory / "validation").mkdir(parents=True, exist_ok=True)
            (self._directory / "config.yaml").write_text(to_yaml(self._config))
            write_questions(self._directory, validation)
            trackers = make_trackers(self._config, is_new=logged_step < 0)
            self._writer = stack.enter_context(MetricsWriter(self._directory, trackers))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics, once a step."""
        if self._writer is not None:
            self._writer.write(step, metrics)
        self._console.step(step, self._config.trainer.max_steps, metrics)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.say(text)

    def keep_trees(self, step: int, trees: Sequence[Tree], advantages: Sequence[Advantages | None]) -> None:
        """Write some of a step's trees for people to look at."""
        if self._writer is not None:
            own = [per_node(tree, advantage) for tree, advantage in zip(trees, advantages, strict=True)]
            self._keeper.keep(step, trees, own)

    def keep_evaluation(self, step: int, result: EvaluationResult) -> None:
        """Write every sample of an evaluation."""
        if self._writer is not None:
            result.to_jsonl(self._directory / "validation" / f"step_{step}.jsonl")

    def export(self, name: str) -> None:
        """Write the model as a Hugging Face directory of that name; a collective over all ranks."""
        self._export(self._directory / name)
        self._console.say(f"model written to {self._directory / name}")

    def _forget_after(self, step: int) -> None:
        """Remove what the run logged, evaluated and exported after a step."""
        drop_metrics_after(self._directory / FILE_NAME, step)
        TreeArchive(self._directory).drop_after(step)
        for path in [*self._directory.glob("validation/step_*.jsonl"), *self._directory.glob("hf_step_*")]:
            number = path.stem.rpartition("_")[2]
            if number.isdecimal() and int(number) > step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
