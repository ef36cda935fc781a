"""What a run has left in its ``output_dir``, read for a person to look at; a run that is still going may be read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_ibtpo.config.dotted import by_dotted_key
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.reporting.metrics import FILE_NAME, read_metrics

PROBLEMS = Path("validation") / "problems.jsonl"


@dataclass
class HeldOut:
    """One held-out problem over the evaluations that it took part in; one entry each.

    Attributes:
        steps: of the evaluations, in order.
        rewards: means over the samples.
        mixed: whether the samples differed in reward.
    """

    steps: list[int]
    rewards: list[float]
    mixed: list[bool]


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        directory: as it was given.
        label: short, and different from that of the runs it is compared with.
        config: its settings by dotted key; empty if it left none.
        rows: of ``metrics.jsonl``.
        archive: its trees.
        held_out: the problems of its evaluations by their id.
        questions: question and gold answer of the held-out problems by their id.
    """

    directory: Path
    label: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    archive: TreeArchive
    held_out: dict[str, HeldOut]
    questions: dict[str, tuple[str, str]]


def read_runs(directories: Sequence[Path]) -> list[RunData]:
    """Read runs.

    Raises:
        UserError: a directory is no run, is given twice, or holds a damaged file.
    """
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError("a run is named twice; name each once")
    return [
        RunData(
            directory=directory,
            label=label,
            config=_read_config(directory / "config.yaml"),
            rows=read_metrics(directory / FILE_NAME),
            archive=TreeArchive(directory),
            held_out=_read_validation(directory / "validation"),
            questions=_read_questions(directory / PROBLEMS),
        )
        for directory, label in zip(directories, _labels(directories), strict=True)
    ]


def write_questions(output_dir: Path, problems: Sequence[Problem]) -> None:
    """Write the held-out problems of a run, which its evaluations name by their ids."""
    lines = [
        {"prompt_id": problem.problem_id, "question": problem.question, "answer": problem.answer}
        for problem in problems
    ]
    (output_dir / PROBLEMS).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def evenly(steps: Sequence[int], sizes: Mapping[int, int], most_bytes: int) -> list[int]:
    """Steps whose files together fit, spread evenly over all of them; the last one in any case."""
    chosen = list(steps)
    stride = 1
    while len(chosen) > 1 and sum(sizes[step] for step in chosen) > most_bytes:
        stride += 1
        chosen = list(steps)[::-1][::stride][::-1]
    return chosen


def _labels(directories: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [directory.resolve().parts for directory in directories]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return by_dotted_key(content) if isinstance(content, dict) else {}


def _read_validation(directory: Path) -> dict[str, HeldOut]:
    numbers = (path.stem.removeprefix("step_") for path in directory.glob("step_*.jsonl"))
    problems: dict[str, HeldOut] = {}
    for step in sorted(int(number) for number in numbers if number.isdecimal()):
        result = EvaluationResult.from_jsonl(directory / f"step_{step}.jsonl")
        for prompt_id, samples in result.by_problem().items():
            rewards = [sample.reward for sample in samples]
            problem = problems.setdefault(prompt_id, HeldOut([], [], []))
            problem.steps.append(step)
            problem.rewards.append(sum(rewards) / len(rewards))
            problem.mixed.append(min(rewards) < max(rewards))
    return problems


def _read_questions(path: Path) -> dict[str, tuple[str, str]]:
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["prompt_id"]: (row["question"], row["answer"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no problems: {error}") from None
