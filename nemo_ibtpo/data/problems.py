"""A problem: a prompt, its gold answer and how an answer to it is verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        problem_id: depends on the question's text only, so that it is the same in every run and on every rank;
            unique in a data set, because repeated questions are removed.
        question: text of the question, before any template.
        answer: the gold answer.
        verifier: name of the verifier that judges answers (``DatasetConfig.verifier``).
        metadata: what the verifier needs besides the answer; JSON-able.
        prompt_tokens: the templated question, at least one token id.
    """

    problem_id: str
    question: str
    answer: str
    verifier: str
    metadata: dict[str, Any]
    prompt_tokens: tuple[int, ...]


def make_problem_id(question: str) -> str:
    """A stable id of a question: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def problems_digest(problems: Sequence[Problem]) -> str:
    """SHA-256 over all fields of all problems in order: equal digests mean the same data set."""
    digest = hashlib.sha256()
    names = [field.name for field in fields(Problem)]
    for problem in problems:
        digest.update(json.dumps([getattr(problem, name) for name in names], sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()
