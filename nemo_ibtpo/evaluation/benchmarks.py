"""Rows of a benchmark's data set as questions with answers; ``BenchmarkConfig.kind`` says how.

``open`` rows are taken as they are. ``choice`` rows get their options in an order that depends on the seed and the
question alone, so that it is the same whatever rows are left out. ``instructions`` rows (IFEval) carry to the
verifier what it checks.
"""

from __future__ import annotations

import hashlib
import random
from string import ascii_uppercase
from typing import Any

from nemo_ibtpo.config.schema import BenchmarkConfig
from nemo_ibtpo.data.loading import RowPreparation, lookup
from nemo_ibtpo.data.rows import UnusableRowError


def row_preparation(benchmark: BenchmarkConfig) -> RowPreparation | None:
    """What ``load_problems`` does to a row first, or None."""
    match benchmark.kind:
        case "open":
            return None
        case "choice":
            return lambda row: _choice_row(row, benchmark)
        case "instructions":
            return lambda row: _instructions_row(row, benchmark)


def _choice_row(row: dict[str, Any], benchmark: BenchmarkConfig) -> dict[str, Any]:
    data = benchmark.data
    question = str(lookup(row, data.question_key)).strip()
    options = [str(lookup(row, key)).strip() for key in benchmark.choice_keys]
    if len(set(options)) < len(options) or not all(options):
        raise UnusableRowError("options that are empty or equal")
    order = list(range(len(options)))
    digest = hashlib.sha256(f"{data.seed}\n{question}".encode("utf-8", "replace")).digest()
    random.Random(digest).shuffle(order)
    letters = ascii_uppercase[: len(options)]
    lines = [f"{letter}) {options[index]}" for letter, index in zip(letters, order, strict=True)]
    right = letters[order.index(0)]
    return {
        data.question_key: "\n".join([question, "", *lines]),
        str(data.answer_key): right,
        "metadata": {},
    }


def _instructions_row(row: dict[str, Any], benchmark: BenchmarkConfig) -> dict[str, Any]:
    data = benchmark.data
    names, arguments = lookup(row, "instruction_id_list"), lookup(row, "kwargs")
    if not (isinstance(names, list) and isinstance(arguments, list) and 0 < len(names) == len(arguments)):
        raise UnusableRowError("instructions without their arguments")
    # Parquet spells out every argument of every instruction and leaves most of them null.
    given = [{name: value for name, value in each.items() if value is not None} for each in arguments]
    return {
        data.question_key: lookup(row, data.question_key),
        str(data.answer_key): ", ".join(names),
        "metadata": {"instruction_id_list": names, "kwargs": given},
    }
