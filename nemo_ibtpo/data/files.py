"""Rows of files: JSON lines, JSON arrays, CSV and Parquet, gzipped or not; one file, a glob or a directory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import DatasetConfig
from nemo_ibtpo.data.rows import BadRow, Row

_ENDINGS = {
    "jsonl": (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "parquet": (".parquet",),
}
_GZIP, _BYTE_ORDER_MARK = b"\x1f\x8b", b"\xef\xbb\xbf"
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_MAX_CELL = 1 << 30


def file_rows(config: DatasetConfig) -> Iterator[tuple[str, Row]]:
    """The rows of the files that a data set names, with their locations.

    Raises (while it is iterated):
        UserError: there is no such file, or one cannot be read.
    """
    reader = {"jsonl": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}[config.source]
    for file in find_files(config):
        try:
            yield from reader(file)
        except OSError as error:
            raise UserError(f"cannot read data file {file}: {error.strerror or error}") from error


def find_files(config: DatasetConfig) -> list[Path]:
    """The files that a data set names, sorted.

    Raises:
        UserError: there are none, or it is not clear which.
    """
    if config.subset is not None:
        raise UserError(f"subset={config.subset} is of Hugging Face data sets; name the files in `path`")
    path = Path(config.path).expanduser()
    if path.is_file():
        if config.split is not None:
            raise UserError(f"split={config.split}: {config.path} is one file; set split to null")
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(_ENDINGS[config.source]))
        if not files:
            wanted = " or ".join(f"*{ending}" for ending in _ENDINGS[config.source])
            raise UserError(f"directory {config.path} holds no {wanted} file")
    else:
        files = sorted(file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        files = [file for file in files if file.is_file()]
        if not files:
            raise UserError(f"data file {config.path} does not exist (relative paths start at {Path.cwd()})")
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, path), []).append(file)
    if config.split is not None:
        if config.split not in by_split:
            found = ", ".join(sorted(name for name in by_split if name)) or "none"
            raise UserError(f"{config.path} has no files of split {config.split!r}; its splits: {found}")
        return by_split[config.split]
    if len(by_split) > 1:
        found = ", ".join(sorted(name or "(none)" for name in by_split))
        raise UserError(f"{config.path} holds files of several splits ({found}); set `split`, or name the files")
    return files


def _split_of(file: Path, root: Path) -> str | None:
    """The split that a file's name, or a directory below the root, begins with."""
    below = file.relative_to(root).parts if root.is_dir() else file.parts[-1:]
    for name in reversed(below):
        if match := re.match(rf"({'|'.join(_SPLITS)})(?=[-_.]|$)", name):
            return match[1]
    return None


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise UserError(f"cannot read data file {file}: damaged gzip ({error})") from error
    return content.removeprefix(_BYTE_ORDER_MARK)


def _json_rows(file: Path) -> Iterator[tuple[str, Row]]:
    content = _content(file)
    if content.lstrip()[:1] == b"[":
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError):
            pass  # lines that are arrays: each is counted below
        else:
            for number, row in enumerate(rows, start=1):
                yield f"{file}[{number}]", row if isinstance(row, dict) else BadRow("not a JSON object")
            return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            yield f"{file}:{number}", _parse_json_line(line)


def _parse_json_line(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        return BadRow("invalid JSON")
    return row if isinstance(row, dict) else BadRow("not a JSON object")


def _csv_rows(file: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(_MAX_CELL)
    try:
        text = io.StringIO(_content(file).decode("utf-8"), newline="")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read data file {file}: it is not UTF-8 ({error.reason})") from error
    reader = csv.DictReader(text, delimiter="\t" if ".tsv" in file.name else ",", strict=True)
    try:
        for row in reader:
            location = f"{file}:{reader.line_num}"
            if None in row or None in row.values():
                yield location, BadRow("another number of cells than the header has")
            else:
                yield location, row
    except csv.Error as error:
        raise UserError(f"cannot read {file} as CSV, line {reader.line_num}: {error}") from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file} as Parquet: {' '.join(str(error).split())}") from error
    number = 0
    for batch in table.to_batches():
        for row in _plain(batch):
            number += 1
            yield f"{file} row {number}", row


def _plain(batch: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows
