"""The shipped benchmarks read rows with the fields of their data sets, and build the prompts they say they build.

A benchmark that reads another column, shows the right option first or shuffles anew in each run gives numbers that
nobody else can get. The rows here have the published data sets' fields; the data sets themselves need a network and
are not exercised, nor are the counts that the files state.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer

from nemo_ibtpo.config.loader import compose_evaluation
from nemo_ibtpo.config.paths import conf_dir
from nemo_ibtpo.config.schema import BenchmarkConfig
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.benchmarks import row_preparation

TOKENIZER = byte_tokenizer()
MATH500 = {
    "problem": "1 + 1?",
    "solution": "It is $2$.",
    "answer": "2",
    "subject": "Algebra",
    "level": 1,
    "unique_id": "x",
}
AIME24 = {"id": 60, "problem": "2 + 2?", "solution": "4", "answer": "204", "url": "u", "year": "2024"}
AIME25 = {"question": "3 + 3?", "answer": "70"}
AMC = {"problem": "4 + 4?", "answer": "27", "year": 2023, "url": "u", "solution": ""}
GPQA = {
    "Question": "Which is a noble gas?\n",
    "Correct Answer": "Neon\n",
    "Incorrect Answer 1": "Iron",
    "Incorrect Answer 2": "Zinc",
    "Incorrect Answer 3": "Lead",
    "Record ID": "rec",
}
IFEVAL = {
    "key": 1000,
    "prompt": "Write without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None, "relation": None}, {"num_words": 3, "relation": "at least"}],
}
ROWS = {
    "math500": (MATH500, "2"),
    "aime24": (AIME24, "204"),
    "aime25": (AIME25, "70"),
    "amc23": (AMC, "27"),
    "amc24": (AMC, "27"),
    "ifeval": (IFEVAL, "punctuation:no_comma, length_constraints:number_words"),
}


def benchmark(name: str, **data: Any) -> BenchmarkConfig:
    words = ["output_dir=x", "model.path=y"]
    if name in ("jsonl", "reasoning_gym"):
        words.append("benchmark.data.path=?")
    found = compose_evaluation(name, words).benchmark
    return replace(found, data=replace(found.data, **data))


def load(config: BenchmarkConfig) -> tuple[list[Problem], LoadReport]:
    return load_problems(config.data, config, TOKENIZER, row_preparation(config))


def local(name: str, directory: Path, rows: list[dict[str, Any]], **data: Any) -> BenchmarkConfig:
    """The benchmark on a local copy: source=jsonl, its path, no subset and no split."""
    directory.mkdir(exist_ok=True)
    (directory / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmark(name, source="jsonl", path=str(directory), subset=None, split=None, **data)


def text(problem: Problem) -> str:
    return TOKENIZER.decode(list(problem.prompt_tokens), skip_special_tokens=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "benchmark").glob("*.yaml")))
def test_every_benchmark_composes_under_its_own_name(name: str) -> None:
    config = benchmark(name)
    assert config.name == name
    asks = {"open": "final answer within \\boxed{}", "choice": "letter of your final answer within \\boxed{}"}
    assert asks.get(config.kind, "{question}") in config.prompt_format


@pytest.mark.parametrize("name", ROWS)
def test_questions_and_answers_come_from_the_right_columns(name: str, tmp_path: Path) -> None:
    row, answer = ROWS[name]
    (problem,), report = load(local(name, tmp_path, [row]))
    asked = next(row[key] for key in ("problem", "question", "prompt") if key in row)
    assert (problem.question, problem.answer) == (asked, answer)
    assert str(asked) in text(problem) and not report.skipped


def test_ifeval_hands_its_instructions_to_the_verifier(tmp_path: Path) -> None:
    (problem,), _ = load(local("ifeval", tmp_path, [IFEVAL]))
    assert problem.verifier == "ifeval"
    assert problem.metadata == {
        "instruction_id_list": IFEVAL["instruction_id_list"],
        "kwargs": [{}, {"num_words": 3, "relation": "at least"}],
    }
    assert text(problem).endswith("<user>Write without commas.<assistant>") or "Write without commas." in text(
        problem
    )


def test_options_are_shuffled_by_seed_and_question_alone(tmp_path: Path) -> None:
    rows = [GPQA | {"Question": f"Question {i}?"} for i in range(40)]
    problems, _ = load(local("gpqa_diamond", tmp_path, rows))
    assert {problem.answer for problem in problems} == set("ABCD"), "the right option is not always in one place"
    for problem in problems:
        lines = problem.question.splitlines()
        assert sorted(line[3:] for line in lines[2:]) == ["Iron", "Lead", "Neon", "Zinc"]
        assert [line[0] for line in lines[2:]] == list("ABCD")
        assert f"{problem.answer}) Neon" in lines
    again, _ = load(local("gpqa_diamond", tmp_path, rows[::-2]))
    assert {p.problem_id: p.answer for p in again}.items() <= {p.problem_id: p.answer for p in problems}.items()
    other, _ = load(local("gpqa_diamond", tmp_path, rows, seed=1))
    assert [p.answer for p in other] != [p.answer for p in problems]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    twice = GPQA | {"Question": "a", "Incorrect Answer 1": "Neon"}
    lacking = {key: value for key, value in GPQA.items() if key != "Incorrect Answer 2"} | {"Question": "b"}
    problems, report = load(local("gpqa_diamond", tmp_path, [GPQA, twice, lacking]))
    assert len(problems) == 1
    assert set(report.skipped) == {"options that are empty or equal", "no column 'Incorrect Answer 2'"}
    broken = IFEVAL | {"prompt": "b", "kwargs": [{}]}
    _, report = load(local("ifeval", tmp_path, [IFEVAL, broken]))
    assert set(report.skipped) == {"instructions without their arguments"}
