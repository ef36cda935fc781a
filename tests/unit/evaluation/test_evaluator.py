"""An evaluation from sampling to figures, with real verifiers and a sampler whose responses are known.

It must give the same figures however problems are dealt over ranks and whatever finishes first. Not exercised:
a model (``tests/unit/rollout`` and the end-to-end tests).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from byte_tokenizer import byte_tokenizer
from reward_settings import reward_config

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.result import EvaluationResult, merge
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.tree.growth import GrowthProgress
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest
from nemo_ibtpo.tree.steps import StepSplitter

TOKENIZER = byte_tokenizer()
# Each response as it is sampled, with its answer; the last one runs into the limit.
YES, NO, NONE = "I think\n\n\\boxed{yes}<eos>", "I think\n\n\\boxed{no}<eos>", "Who knows?<eos>"
LIMIT = 24
ENDLESS = ("on and " * LIMIT)[:LIMIT]
ANSWERS = {YES: "yes", NO: "no", NONE: None, ENDLESS: None}
PROBLEMS = [
    Problem(f"p{i}", f"question {i}", "yes", "exact", {}, tuple(TOKENIZER(f"question {i}").input_ids))
    for i in range(8)
]


class KnownSampler:
    """Answers a request with one of the responses, chosen by its seed; finishes requests in its own order."""

    def __init__(self, order: int) -> None:
        self._order = random.Random(order)
        self._waiting: list[RolloutRequest] = []

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        self._waiting += requests

    def poll(self) -> list[Rollout]:
        self._order.shuffle(self._waiting)
        return [self._finish(self._waiting.pop()) for _ in self._waiting[:5]]

    def _finish(self, request: RolloutRequest) -> Rollout:
        text = random.Random(request.seed).choice(list(ANSWERS))
        tokens = tuple(TOKENIZER(text).input_ids)
        reason = "eos" if tokens[-1] == TOKENIZER.eos_token_id else "length"
        return Rollout(request.request_id, tokens, (-1.0,) * len(tokens), reason)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(TOKENIZER, reward_config(num_workers=1, timeout_s=30.0))
    pool.set_problems(PROBLEMS)
    yield pool
    pool.close()


def run(problems: Sequence[Problem], pool: VerifierPool, *, order: int = 0, seed: int = 0) -> EvaluationResult:
    return evaluate(
        problems,
        KnownSampler(order),
        pool,
        splitter=StepSplitter(TOKENIZER),
        samples_per_problem=6,
        max_new_tokens=LIMIT,
        seed=seed,
        settings={"template": "{question}"},
    )


def test_figures_follow_from_the_responses(pool: VerifierPool) -> None:
    result = run(PROBLEMS, pool)
    texts = [TOKENIZER.decode(list(s.tokens), skip_special_tokens=False) for s in result.samples]
    assert set(texts) == set(ANSWERS)
    assert len(texts) == 6 * len(PROBLEMS)  # six of four responses each: some were drawn twice
    for text, drawn in zip(texts, result.samples, strict=True):
        assert drawn.answer == ANSWERS[text]
        assert drawn.reward == float(text == YES)
        assert drawn.verdict == {YES: "correct", NO: "wrong"}.get(text, "unparsable")
        assert drawn.text == text.removesuffix("<eos>")
        assert drawn.finish_reason == ("length" if text == ENDLESS else "eos")
    assert result.accuracy == pytest.approx(texts.count(YES) / len(texts))
    assert result.truncated_share == pytest.approx(texts.count(ENDLESS) / len(texts))
    assert result.settings == {
        "template": "{question}",
        "samples_per_problem": 6,
        "max_new_tokens": LIMIT,
        "seed": 0,
    }


def test_ranks_and_finishing_order_make_no_difference(pool: VerifierPool) -> None:
    whole = run(PROBLEMS, pool)
    parts = [run(PROBLEMS[rank::3], pool, order=rank + 1) for rank in range(3)]
    assert merge([*parts, run([], pool)]) == whole
    assert run(PROBLEMS, pool, seed=1).samples != whole.samples


def test_progress_reaches_the_end(pool: VerifierPool) -> None:
    seen: list[GrowthProgress] = []
    evaluate(
        PROBLEMS[:2],
        KnownSampler(0),
        pool,
        splitter=StepSplitter(TOKENIZER),
        samples_per_problem=2,
        max_new_tokens=LIMIT,
        seed=0,
        settings={},
        on_progress=seen.append,
    )
    assert (seen[-1].trees, seen[-1].total_trees, seen[-1].trajectories) == (2, 2, 4)
