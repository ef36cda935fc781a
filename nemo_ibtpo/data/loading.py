"""From a data set's configuration to problems, with an account of what was left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import DatasetConfig
from nemo_ibtpo.data.answers import gold_answers, text_of
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.problems import Problem, make_problem_id
from nemo_ibtpo.data.prompts import PromptSettings, PromptTemplate, Question, as_question, chat_messages
from nemo_ibtpo.data.rows import BadRow, Row, UnusableRowError
from nemo_ibtpo.data.sources import read_rows

RowPreparation = Callable[[dict[str, Any]], dict[str, Any]]


def load_problems(
    config: DatasetConfig, prompts: PromptSettings, tokenizer: Any, prepare: RowPreparation | None = None
) -> tuple[list[Problem], LoadReport]:
    """The problems of a data set, at most ``config.size`` of them, in the data set's order.

    A bad row, a repeated question and a prompt above ``max_prompt_tokens`` are left out and counted.

    Args:
        config: the data set.
        prompts: template and prompt limit.
        tokenizer: a Hugging Face tokenizer.
        prepare: makes another row of each before its columns are read; what it puts under ``metadata`` goes to the
            verifier. May raise ``UnusableRowError``.

    Raises:
        UserError: the source cannot be read, a column does not exist, or no problem is left.
    """
    if (config.verifier == "reasoning_gym") != (config.source == "reasoning_gym"):
        raise UserError(
            f"data set {config.path}: source={config.source} with verifier={config.verifier}; the reasoning_gym "
            "verifier goes with the reasoning_gym source and with no other"
        )
    reader = _ProblemReader(config, PromptTemplate(prompts, tokenizer), prompts.max_prompt_tokens, prepare)
    report = LoadReport(source=f"{config.source} data set {config.path}", notes=reader.template.notes())
    problems: list[Problem] = []
    for location, row in read_rows(config):
        if len(problems) == config.size:
            break
        report.rows += 1
        try:
            problems.append(reader.read(row))
        except UnusableRowError as reason:
            report.skip(str(reason), location)
    report.loaded = len(problems)
    if not problems:
        raise UserError(_describe_empty(report, reader))
    return problems, report


def leave_out(problems: Sequence[Problem], held_out: Mapping[str, str], report: LoadReport) -> list[Problem]:
    """The problems that are not held out; ``report`` counts the others.

    Args:
        held_out: where a problem is already, such as ``validation``, by its id.

    Raises:
        UserError: none is left.
    """
    for problem in problems:
        if (where := held_out.get(problem.problem_id)) is not None:
            report.skip(f"also a {where} question", repr(problem.question[:80]))
    kept = [problem for problem in problems if problem.problem_id not in held_out]
    report.loaded = len(kept)
    if not kept:
        where = held_out[problems[0].problem_id]
        raise UserError(f"{report.source}: no problem that {where} does not ask too; use other problems for one")
    return kept


class _ProblemReader:
    """Makes problems of rows, remembering the questions it has seen.

    Attributes:
        columns: of the first row that was an object, None before.
        shortest_prompt: tokens of the shortest prompt so far.
        template: makes prompts.
    """

    def __init__(
        self,
        config: DatasetConfig,
        template: PromptTemplate,
        max_prompt_tokens: int,
        prepare: RowPreparation | None,
    ) -> None:
        self.columns: list[str] | None = None
        self.shortest_prompt = math.inf
        self._config = config
        self.template = template
        self._max_prompt_tokens = max_prompt_tokens
        self._prepare = prepare
        self._answers: dict[str, str] = {}  # by question

    def read(self, row: Row) -> Problem:
        """The row's problem.

        Raises:
            UnusableRowError: there is none.
        """
        if isinstance(row, BadRow):
            raise UnusableRowError(row.reason)
        if self.columns is None:
            self.columns = list(row)
        if self._prepare is not None:
            row = self._prepare(row)
        asked = self._asked(row)
        question = asked if isinstance(asked, str) else text_of(as_question(asked), "question")
        answer, *others = self._gold(row)
        if question in self._answers:
            same = self._answers[question] == answer
            raise UnusableRowError("repeated question" if same else "repeated question with another answer")
        self._answers[question] = answer
        prompt_tokens = self.template(asked)
        self.shortest_prompt = min(self.shortest_prompt, len(prompt_tokens))
        if len(prompt_tokens) > self._max_prompt_tokens:
            raise UnusableRowError(f"prompt longer than max_prompt_tokens={self._max_prompt_tokens}")
        return Problem(
            problem_id=make_problem_id(question),
            question=question,
            answer=answer,
            verifier=self._config.verifier,
            metadata=self._metadata(row) | ({"accepted": others} if others else {}),
            prompt_tokens=prompt_tokens,
        )

    def _asked(self, row: dict[str, Any]) -> Question:
        value = lookup(row, self._config.question_key)
        return chat_messages(value) if isinstance(value, list) else text_of(value, "question")

    def _gold(self, row: dict[str, Any]) -> list[str]:
        if (key := self._config.answer_key) is None:
            return [""]
        return gold_answers(lookup(row, key), self._config.answer_from)

    def _metadata(self, row: dict[str, Any]) -> dict[str, Any]:
        """What verifiers need, or the further columns, JSON-able, for reward functions."""
        if self._prepare or self._config.source == "reasoning_gym":
            metadata: dict[str, Any] = row["metadata"]
            return metadata
        further = {
            name: row[name] for name in row if name not in (self._config.question_key, self._config.answer_key)
        }
        return {"row": json.loads(json.dumps(further, default=str))} if further else {}


def lookup(row: dict[str, Any], key: str) -> Any:
    """The value under a column name or a dotted path into nested columns (``reward_model.ground_truth``).

    Raises:
        UnusableRowError: there is no such column.
    """
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UnusableRowError(f"no column {key!r}")
        value = value[part]
    return value


def _describe_empty(report: LoadReport, reader: _ProblemReader) -> str:
    if report.rows == 0:
        return f"{report.source} is empty"
    line = f"{report.source}: no usable problem in {report.rows} rows; {report.describe_skipped()}"
    if reader.columns is not None:
        line += f"; columns: {', '.join(reader.columns)}"
    if reader.shortest_prompt < math.inf:
        line += f"; the shortest prompt has {reader.shortest_prompt} tokens"
    return line
