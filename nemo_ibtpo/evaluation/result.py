"""Every sample of an evaluation, and the figures that follow from them.

Invariants (asserted by ``tests/unit/evaluation/test_result.py``):

- Every problem has ``samples_per_problem`` samples, numbered from 0; samples are sorted by problem and number.
- All figures are functions of the samples: merging the results of data-parallel ranks gives what one rank would
  have computed on all problems, and a result read back from its file gives the same figures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.metrics import majority_reward, pass_at_k
from nemo_ibtpo.evaluation.statistics import Interval, bootstrap_interval
from nemo_ibtpo.files import write_atomically
from nemo_ibtpo.tree.node import FinishReason

_FORMAT = "nemo_ibtpo.evaluation/2"

Verdict = Literal["correct", "wrong", "unparsable", "timeout", "crash", "scored", "error"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled response.

    Attributes:
        prompt_id: the problem's id.
        sample: its number among the problem's samples.
        tokens: response token ids.
        text: the response, special tokens left out.
        answer: what was judged: the boxed answer (all of the response where a verifier wants that), None if there
            is none.
        verdict: what became of it; ``timeout`` and ``crash`` ended the verifier's process; a reward function has
            ``scored`` it or met an ``error``.
        reward: 1 if it is correct, else 0; what reward functions say.
        finish_reason: why sampling ended.
        parts: what the parts of a reward function say, by name.
    """

    prompt_id: str
    sample: int
    tokens: tuple[int, ...]
    text: str
    answer: str | None
    verdict: Verdict
    reward: float
    finish_reason: FinishReason
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation.

    Attributes:
        samples: all of them.
        samples_per_problem: k of avg@k.
        settings: how they were made (seed, limits, template, sampling parameters); JSON-able.
    """

    samples: tuple[Sample, ...]
    samples_per_problem: int
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.samples, key=lambda sample: (sample.prompt_id, sample.sample)))
        object.__setattr__(self, "samples", ordered)
        for prompt_id, group in groupby(ordered, key=lambda sample: sample.prompt_id):
            numbers = [sample.sample for sample in group]
            if numbers != list(range(self.samples_per_problem)):
                raise ValueError(
                    f"problem {prompt_id!r} has the samples {numbers[:8]}, not 0 to {self.samples_per_problem - 1}"
                )

    def by_problem(self) -> dict[str, list[Sample]]:
        """The samples of each problem."""
        return {key: list(group) for key, group in groupby(self.samples, key=lambda sample: sample.prompt_id)}

    def scores(self) -> dict[str, float]:
        """Mean reward of each problem, by its id: what two evaluations are compared on."""
        return {key: float(np.mean([s.reward for s in group])) for key, group in self.by_problem().items()}

    @property
    def accuracy(self) -> float:
        """avg@k: mean over problems of the mean reward over samples."""
        return self._mean(list(self.scores().values()))

    @property
    def interval(self) -> Interval:
        """95 % bootstrap interval of the accuracy, over problems."""
        return bootstrap_interval(list(self.scores().values()), seed=0)

    def pass_scores(self, k: int) -> dict[str, float]:
        """The unbiased pass@k of each problem, by its id; a sample is correct if its reward is 1.

        Raises:
            ValueError: k exceeds the samples per problem.
        """
        n = self.samples_per_problem
        return {
            key: pass_at_k(n, sum(sample.reward == 1.0 for sample in group), k)
            for key, group in self.by_problem().items()
        }

    def pass_at(self, k: int) -> float:
        """Mean over problems of :meth:`pass_scores`."""
        return self._mean(list(self.pass_scores(k).values()))

    def majority_scores(self) -> dict[str, float]:
        """Reward of the answer given most often, for each problem by its id."""
        return {
            key: majority_reward([s.answer for s in group], [s.reward for s in group])
            for key, group in self.by_problem().items()
        }

    @property
    def majority(self) -> float:
        """majority@k: mean over problems of :meth:`majority_scores`."""
        return self._mean(list(self.majority_scores().values()))

    @property
    def mean_response_tokens(self) -> float:
        """Mean length of a response."""
        return self._mean([len(sample.tokens) for sample in self.samples])

    @property
    def truncated_share(self) -> float:
        """Share of the responses that ran into the length limit."""
        return self._mean([sample.finish_reason == "length" for sample in self.samples])

    @property
    def unanswered_share(self) -> float:
        """Share of the responses without a boxed answer."""
        return self._mean([sample.answer is None for sample in self.samples])

    @property
    def unparsable_share(self) -> float:
        """Share of the responses without a boxed answer, or with one that the verifier cannot read."""
        return self._mean([sample.verdict == "unparsable" for sample in self.samples])

    @property
    def verifier_limit_share(self) -> float:
        """Share of the responses whose verification ran into a limit of time or memory, or a function's error."""
        return self._mean([sample.verdict in ("timeout", "crash", "error") for sample in self.samples])

    def part_means(self) -> dict[str, float]:
        """Mean of each part of a reward function over the samples that have it."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.parts)
        return {name: self._mean([s.parts[name] for s in self.samples if name in s.parts]) for name in names}

    def metrics(self) -> dict[str, float]:
        """All figures, for logs."""
        low, high = self.interval
        k = self.samples_per_problem
        return {
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            f"pass_at_{k}": self.pass_at(k),
            f"majority_at_{k}": self.majority,
            "mean_response_tokens": self.mean_response_tokens,
            "truncated_share": self.truncated_share,
            "unanswered_share": self.unanswered_share,
            "unparsable_share": self.unparsable_share,
            "verifier_limit_share": self.verifier_limit_share,
            **{f"part/{name}": mean for name, mean in self.part_means().items()},
        }

    def to_jsonl(self, path: Path) -> None:
        """Write the settings and figures as the first line and a sample in each of the others.

        The file appears complete or not at all.
        """
        header = {
            "format": _FORMAT,
            "samples_per_problem": self.samples_per_problem,
            "settings": self.settings,
            "metrics": self.metrics(),
        }
        lines = (header, *map(asdict, self.samples))
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    @classmethod
    def from_jsonl(cls, path: Path) -> EvaluationResult:
        """Read what :meth:`to_jsonl` wrote.

        Raises:
            UserError: the file cannot be read or holds something else.
        """
        try:
            with path.open(encoding="utf-8") as file:
                header, *rows = (json.loads(line) for line in file)
            if header["format"] != _FORMAT:
                raise ValueError(f"format {header['format']!r}, expected {_FORMAT!r}")
            samples = tuple(Sample(**row | {"tokens": tuple(row["tokens"])}) for row in rows)
            return cls(samples, header["samples_per_problem"], header["settings"])
        except OSError as error:
            raise UserError(f"cannot read the evaluation {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not an evaluation written by this program: {error}") from error

    def _mean(self, values: Sequence[float]) -> float:
        if not values:
            raise ValueError("an evaluation without samples has no figures; merge the ranks' parts first")
        return float(np.mean(values))


def merge(parts: Sequence[EvaluationResult]) -> EvaluationResult:
    """One result of the parts that data-parallel ranks evaluated.

    Raises:
        ValueError: no parts, parts made with different settings, or a problem in two of them.
    """
    if not parts:
        raise ValueError("no evaluations to merge")
    first = parts[0]
    for part in parts:
        if (part.samples_per_problem, part.settings) != (first.samples_per_problem, first.settings):
            raise ValueError("evaluations made with different settings cannot be merged")
    owners = Counter(prompt_id for part in parts for prompt_id in part.by_problem())
    if shared := [prompt_id for prompt_id, count in owners.items() if count > 1]:
        raise ValueError(f"{len(shared)} problems are in more than one part, first {shared[0]!r}")
    samples = tuple(sample for part in parts for sample in part.samples)
    return EvaluationResult(samples, first.samples_per_problem, first.settings)
