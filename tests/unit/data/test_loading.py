"""Every row of a data set ends as a problem or is counted under a reason; nothing disappears.

Not exercised: the sources themselves (``test_sources.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from data_configs import data_config, dataset_config

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.loading import leave_out, load_problems
from nemo_ibtpo.data.problems import Problem

TOKENIZER = byte_tokenizer()


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads rows, given as objects or as raw lines, from a file of JSON lines."""

    def load(rows: list[Any], data: dict[str, Any] | None = None, **changes: Any) -> tuple[list[Problem], LoadReport]:
        file = tmp_path / "problems.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return load_problems(dataset_config(path=str(file), **changes), data_config(**data or {}), TOKENIZER)

    return load


def refusal(load: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        load(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_row_becomes_a_problem(load: Any) -> None:
    problems, report = load([{"question": " 1 + 1? ", "answer": 2}], {"prompt_format": "Q: {question}\n"})
    expected = Problem(
        problem_id="c97c3a9c9b990740",  # sha256("1 + 1?"): ids must not change from release to release
        question="1 + 1?",
        answer="2",
        verifier="exact",
        metadata={},
        prompt_tokens=tuple(TOKENIZER("Q: 1 + 1?\n").input_ids),
    )
    assert problems == [expected]
    assert (report.rows, report.loaded, report.skipped) == (1, 1, {})


def test_every_bad_row_is_counted_with_its_reason_and_first_place(load: Any) -> None:
    rows = [
        {"question": "good", "answer": "1"},
        {"question": "no answer"},
        {"question": "", "answer": "1"},
        {"question": "blank answer", "answer": " "},
        {"question": "null answer", "answer": None},
        "not json",
        "[]",
        {"question": "mapping answer", "answer": {"a": "1"}},
        {"question": "bool answer", "answer": True},
        '{"question": "nan answer", "answer": NaN}',
        '{"question": "half a surrogate \\ud800", "answer": "1"}',
        {"question": "good", "answer": "1"},
        {"question": "good", "answer": "one"},
        {"question": "x" * 101, "answer": "1"},
    ]
    problems, report = load(rows)
    assert [problem.question for problem in problems] == ["good"]
    counted = {reason: (s.count, s.first.rpartition(":")[2]) for reason, s in report.skipped.items()}
    assert counted == {
        "no column 'answer'": (1, "2"),
        "empty question": (1, "3"),
        "empty answer": (2, "4"),
        "invalid JSON": (1, "6"),
        "not a JSON object": (1, "7"),
        "answer is dict, not text": (1, "8"),
        "answer is bool, not text": (1, "9"),
        "answer is float, not text": (1, "10"),
        "question is not valid Unicode": (1, "11"),
        "repeated question": (1, "12"),
        "repeated question with another answer": (1, "13"),
        "prompt longer than max_prompt_tokens=100": (1, "14"),
    }
    assert sum(s.count for s in report.skipped.values()) + report.loaded == report.rows == len(rows)
    assert "1 problems from 14 rows; left out: 1 x no column 'answer' (first: " in report.summary()


@pytest.mark.parametrize(("value", "answer"), [(7, "7"), (-3.0, "-3"), (0.25, "0.25"), ("007", "007")])
def test_numbers_become_the_text_a_person_would_write(load: Any, value: Any, answer: str) -> None:
    assert load([{"question": "q", "answer": value}])[0][0].answer == answer


def test_dotted_keys_reach_into_nested_columns_and_plain_ones_win(load: Any) -> None:
    nested = {"prompt": "q", "reward_model": {"ground_truth": "34"}}
    keys = {"question_key": "prompt", "answer_key": "reward_model.ground_truth"}
    assert load([nested], **keys)[0][0].answer == "34"
    assert load([nested | {"reward_model.ground_truth": "35"}], **keys)[0][0].answer == "35"


def test_size_takes_the_first_usable_ones(load: Any) -> None:
    rows = ["broken", *({"question": f"q{i}", "answer": str(i)} for i in range(5))]
    problems, report = load(rows, size=2)
    assert [problem.question for problem in problems] == ["q0", "q1"]
    assert report.rows == 3  # the rest was not looked at


def test_a_wrong_column_says_which_columns_there_are(load: Any) -> None:
    line = refusal(load, [{"problem": "q", "solution": "1"}] * 3, question_key="prompt")
    assert "no usable problem in 3 rows; 3 x no column 'prompt'" in line
    assert line.endswith("columns: problem, solution")


def test_an_empty_data_set_is_refused(load: Any) -> None:
    assert refusal(load, []).endswith("is empty")


def test_when_all_prompts_are_too_long_the_shortest_is_named(load: Any) -> None:
    rows = [{"question": "x" * n, "answer": "1"} for n in (9, 7, 8)]
    line = refusal(load, rows, {"max_prompt_tokens": 5})
    assert "3 x prompt longer than max_prompt_tokens=5" in line
    assert line.endswith("the shortest prompt has 7 tokens")


def test_the_reasoning_gym_verifier_needs_its_own_source(load: Any) -> None:
    assert "goes with the reasoning_gym source" in refusal(load, [], verifier="reasoning_gym")


def test_a_reasoning_gym_problem_carries_its_entry() -> None:
    config = dataset_config(source="reasoning_gym", path="chain_sum", size=4, verifier="reasoning_gym")
    problems, _ = load_problems(config, data_config(max_prompt_tokens=1000), TOKENIZER)
    for problem in problems:
        assert problem.metadata["entry"]["answer"] == problem.answer
        assert problem.metadata["task"] == "chain_sum"
        json.dumps(problem.metadata)


def test_questions_of_the_validation_set_are_left_out_and_counted(load: Any) -> None:
    problems, report = load([{"question": question, "answer": "1"} for question in ("a", "b", "c")])
    kept = leave_out(problems, {problems[1].problem_id: "validation"}, report)
    assert [problem.question for problem in kept] == ["a", "c"]
    assert report.loaded == 2
    assert "1 x also a validation question (first: 'b')" in report.summary()
    with pytest.raises(UserError, match="no problem that validation does not ask too"):
        leave_out(kept, dict.fromkeys((problem.problem_id for problem in kept), "validation"), report)
