"""Rows of a data set, wherever they come from: reasoning-gym, files or Hugging Face.

A source yields (location, row) pairs; the location is for messages. A row that could not be read is a
``BadRow`` and travels on to be counted; whatever is wrong with the source as a whole is a ``UserError``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import DatasetConfig
from nemo_ibtpo.data.files import file_rows, find_files
from nemo_ibtpo.data.rows import Row
from nemo_ibtpo.signals import unreached_by_signals


def read_rows(config: DatasetConfig) -> Iterator[tuple[str, Row]]:
    """The rows of a data set with their locations, in the data set's own order.

    Raises (while it is iterated):
        UserError: the source does not exist, cannot be read, or was asked for something it does not have.
    """
    match config.source:
        case "reasoning_gym":
            return _reasoning_gym_rows(config)
        case "jsonl" | "csv" | "parquet":
            return file_rows(config)
        case "huggingface":
            subsets = config.subset.split(",") if config.subset else [None]
            return chain.from_iterable(_huggingface_rows(config, subset) for subset in subsets)


def check_sources(*configs: DatasetConfig) -> None:
    """Whether the files that data sets name are there; reads none of them.

    Raises:
        UserError: one is not there.
    """
    for config in configs:
        if config.source in ("jsonl", "csv", "parquet"):
            find_files(config)
        elif config.source == "huggingface" and Path(config.path).is_absolute() and not Path(config.path).exists():
            raise UserError(f"data set {config.path}: there is no such directory")


def _huggingface_rows(config: DatasetConfig, subset: str | None) -> Iterator[tuple[str, Row]]:
    import datasets

    where = f"data set {config.path}"
    saved = any((Path(config.path) / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(config.path) if saved else datasets.load_dataset(config.path, subset)
    except Exception as error:  # the hub, the file system, a builder or a parser: all the user's to mend
        which = f" (subset {subset})" if subset else ""
        raise UserError(f"cannot load {where}{which}: {_one_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(found)
        if config.split is None and len(found) > 1:
            raise UserError(f"{where} has several splits, set `split` to one of: {splits}")
        split = config.split or next(iter(found))
        if split not in found:
            raise UserError(f"{where} has no split {split!r}; its splits: {splits}")
        found = found[split]
    elif config.split is not None:
        raise UserError(f"{where} was saved as a single split; set `split` to null instead of {config.split!r}")
    for number, row in enumerate(found, start=1):
        yield f"{config.path} row {number}", row


def _reasoning_gym_rows(config: DatasetConfig) -> Iterator[tuple[str, Row]]:
    if config.size is None or config.size < 1:
        raise UserError(f"reasoning-gym task {config.path!r}: set `size` to the number of problems to generate")
    spec = {"task": config.path, "options": config.options, "size": config.size, "seed": config.seed}
    program = Path(__file__).with_name("_reasoning_gym_rows.py")
    # -P: the program's own directory does not go on the import path.
    with unreached_by_signals():
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
    with process:
        output, errors = process.communicate(json.dumps(spec))
    if process.returncode != 0:
        last = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise UserError(f"reasoning-gym task {config.path!r} with options {config.options} failed: {last[0]}")
    for number, line in enumerate(output.splitlines()):
        entry = json.loads(line)
        if "error" in entry:
            raise UserError(entry["error"])
        # The verifier needs the whole entry; the columns are there for question_key and answer_key.
        metadata = {"task": config.path, "options": config.options, "entry": entry}
        yield f"{config.path}[{number}]", {**entry, "metadata": metadata}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
