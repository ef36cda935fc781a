"""What the runs of a study left, in one small file: one JSON object a run.

It holds what tables and figures are made of, so that they can be drawn again without training anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_ibtpo.checkpoints.status import finished_steps
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.experiments.training_study.study_file import Run
from nemo_ibtpo.experiments.training_study.tree_shapes import mean_shape
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.reporting.metrics import FILE_NAME, read_metrics

PROBE = ("eff_rate", "avg_rate", "ib_score", "cov", "entropy")
# Of the training trees; of the arm's own shape, so that they are no measure that arms share.
TRAINING = ("eff_rate", "avg_rate", "entropy", "sampled_tokens_per_prompt", "unique_tokens_per_prompt")


FINAL = "final.jsonl"  # in the directory of a run: the samples of the evaluation after training


@dataclass(frozen=True, slots=True)
class Measurement:
    """A policy at an evaluation.

    Attributes:
        step: steps made before it.
        tokens: sampled for training until then.
        seconds: of the steps until then, evaluations left out.
        scores: share of right samples of each held-out problem, in the order of the problems' ids.
        probe: what the probe trees show, by name; None for a mean over nothing.
    """

    step: int
    tokens: int
    seconds: float
    scores: tuple[float, ...]
    probe: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A complete run.

    Attributes:
        task, arm, seed: which one.
        measurements: in the order of the steps; the first is of the base model.
        training: of each step, by name, ``tokens`` (sampled until then) among them.
        trees: shape of the trees that the run kept (``shapes``), by name; empty if it kept none.
        final: share of right samples of each problem of the evaluation after training; None without one.
    """

    task: str
    arm: str
    seed: int
    measurements: tuple[Measurement, ...]
    training: Mapping[str, Sequence[float | None]]
    trees: Mapping[str, float | None]
    final: tuple[float, ...] | None


def is_trained(run: Run) -> bool:
    """Whether a run has trained to its end."""
    return finished_steps(Path(run.config.output_dir), run.config.trainer) is not None


def is_complete(run: Run, final: bool) -> bool:
    """Whether a run has been made to its end, its evaluation after training included if there is to be one."""
    return is_trained(run) and (not final or (Path(run.config.output_dir) / FINAL).is_file())


def gather(run: Run, final: bool) -> RunResult:
    """The result of a complete run from its files.

    Args:
        run: which one.
        final: whether it was evaluated after training.

    Raises:
        UserError: they are not as the run left them.
    """
    directory = Path(run.config.output_dir)
    rows = read_metrics(directory / FILE_NAME)
    measurements, seconds = [], 0.0
    for row in rows:
        seconds += row.get("perf/step_s", 0.0)
        if "val/accuracy" in row:
            measurements.append(
                Measurement(
                    step=row["step"],
                    tokens=int(row.get("train/sampled_tokens", 0)),
                    seconds=round(seconds, 3),
                    scores=_scores(directory / "validation" / f"step_{row['step']}.jsonl"),
                    probe={name: _rounded(row.get(f"probe/{name}")) for name in PROBE},
                )
            )
    steps = rows[1:]
    training = {name: [_rounded(row.get(f"train/{name}")) for row in steps] for name in TRAINING}
    training["tokens"] = [row["train/sampled_tokens"] for row in steps]
    archive = TreeArchive(directory)
    kept = [tree for step in archive.steps() for tree in archive.read(step).trees]
    trees = {name: _rounded(value) for name, value in mean_shape(kept).items()} if kept else {}
    last = _scores(directory / FINAL) if final else None
    return RunResult(run.task.name, run.arm, run.seed, tuple(measurements), training, trees, last)


def write_results(results: Sequence[RunResult], path: Path) -> None:
    """Write one line a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), encoding="utf-8")


def read_results(path: Path) -> list[RunResult]:
    """What :func:`write_results` wrote.

    Raises:
        UserError: the file is missing or something else.
    """
    try:
        return [_from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"results {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold the results of a study: {error}") from None


def _from_json(row: dict[str, Any]) -> RunResult:
    measurements = tuple(Measurement(**{**one, "scores": tuple(one["scores"])}) for one in row["measurements"])
    last = row["final"]
    return RunResult(**{**row, "measurements": measurements, "final": last if last is None else tuple(last)})


def _scores(file: Path) -> tuple[float, ...]:
    scores = EvaluationResult.from_jsonl(file).scores()
    return tuple(round(scores[problem], 4) for problem in sorted(scores))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
