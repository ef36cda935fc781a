"""Figures of an evaluation follow from its samples, wherever these were made or stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.result import EvaluationResult, Sample, merge

SETTINGS = {"seed": 1, "temperature": 0.7, "template": "{question}"}


def sample(prompt_id: str, number: int, answer: str | None, reward: float, **changes: object) -> Sample:
    verdict = "unparsable" if answer is None else "correct" if reward else "wrong"
    ordinary = Sample(prompt_id, number, (1, 2, 3), "text", answer, verdict, reward, "eos")  # type: ignore[arg-type]
    return replace(ordinary, **changes)  # type: ignore[arg-type]


RESULT = EvaluationResult(
    (
        sample("a", 0, "7", 1.0),
        sample("a", 1, "7", 1.0),
        sample("a", 2, "8", 0.0, tokens=(1,)),
        sample("b", 0, None, 0.0, finish_reason="length", tokens=(1,) * 10),
        sample("b", 1, "5", 0.0, verdict="timeout"),
        sample("b", 2, "6", 1.0, finish_reason="stop"),
    ),
    3,
    SETTINGS,
)


def test_the_figures() -> None:
    figures = RESULT.metrics()
    low, high = figures.pop("accuracy_low"), figures.pop("accuracy_high")
    assert figures == pytest.approx(
        {
            "accuracy": (2 / 3 + 1 / 3) / 2,
            "pass_at_3": 1.0,
            "majority_at_3": (1.0 + 0.5) / 2,  # b: 5 and 6 once each
            "mean_response_tokens": (3 + 3 + 1 + 10 + 3 + 3) / 6,
            "truncated_share": 1 / 6,
            "unanswered_share": 1 / 6,
            "unparsable_share": 1 / 6,
            "verifier_limit_share": 1 / 6,
        }
    )
    assert low == pytest.approx(1 / 3) and high == pytest.approx(2 / 3)
    assert RESULT.pass_at(1) == pytest.approx(RESULT.accuracy)
    assert RESULT.pass_at(2) == pytest.approx((1 + (1 - 1 / 3)) / 2)  # C(1,2)=0; C(2,2)/C(3,2) = 1/3


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.data())
def test_merging_the_ranks_parts_is_evaluating_everything_on_one(
    owner_of_problem: list[int], data: st.DataObject
) -> None:
    rewards = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2)
    samples = [
        sample(f"p{problem}", number, "x", reward)
        for problem in range(len(owner_of_problem))
        for number, reward in enumerate(data.draw(rewards))
    ]
    parts = [
        EvaluationResult(tuple(s for s in samples if owner_of_problem[int(s.prompt_id[1:])] == rank), 2, SETTINGS)
        for rank in range(3)  # some ranks may have no problem
    ]
    whole = EvaluationResult(tuple(samples), 2, SETTINGS)
    assert merge(parts) == merge(parts[::-1]) == whole


def test_what_does_not_belong_together_is_not_merged() -> None:
    with pytest.raises(ValueError, match="no evaluations"):
        merge([])
    with pytest.raises(ValueError, match="2 problems are in more than one part"):
        merge([RESULT, RESULT])
    with pytest.raises(ValueError, match="different settings"):
        merge([RESULT, EvaluationResult((), 3, SETTINGS | {"seed": 2})])


def test_every_problem_has_all_its_samples() -> None:
    with pytest.raises(ValueError, match="problem 'b' has the samples"):
        EvaluationResult(RESULT.samples[:-1], 3, SETTINGS)


def test_no_samples_no_figures() -> None:
    with pytest.raises(ValueError, match="without samples"):
        _ = EvaluationResult((), 3, SETTINGS).accuracy


def test_the_file_gives_back_the_result_and_starts_with_its_settings_and_figures(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.jsonl"
    RESULT.to_jsonl(file)
    assert EvaluationResult.from_jsonl(file) == RESULT
    header, *rows = map(json.loads, file.read_text().splitlines())
    assert header["settings"] == SETTINGS and header["metrics"] == RESULT.metrics()
    assert rows[0] == {
        "prompt_id": "a",
        "sample": 0,
        "tokens": [1, 2, 3],
        "text": "text",
        "answer": "7",
        "verdict": "correct",
        "reward": 1.0,
        "finish_reason": "eos",
        "parts": {},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.jsonl"]


@pytest.mark.parametrize(
    "text", ["", "not json", "[1]", '{"format": "other"}', '{"format": "nemo_ibtpo.evaluation/2"}']
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "evaluation.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match="is not an evaluation"):
        EvaluationResult.from_jsonl(file)
    with pytest.raises(UserError, match="cannot read"):
        EvaluationResult.from_jsonl(tmp_path / "missing.jsonl")


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.jsonl"
    RESULT.to_jsonl(file)
    file.write_text(file.read_text().replace("evaluation/2", "evaluation/9"))
    with pytest.raises(UserError, match=r"format 'nemo_ibtpo\.evaluation/9', expected"):
        EvaluationResult.from_jsonl(file)
