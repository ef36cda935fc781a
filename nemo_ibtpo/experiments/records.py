"""What an experiment has measured, kept line by line, so that one that was killed goes on.

Below an experiment's directory lie ``settings.json``, which says what was measured, and one file of JSON lines. A
line is written when a unit of work is complete; a line that a kill left unfinished is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.files import drop_cut_off_line, write_atomically

SETTINGS = "settings.json"
RecordT = TypeVar("RecordT")
KeyT = TypeVar("KeyT", bound=Hashable)


class RecordStore(Generic[KeyT, RecordT]):
    """The records of an experiment's directory, made if it is not there.

    Args:
        directory: of this experiment and no other.
        file_name: of the JSON lines.
        kind: the data class of the records; sequences in it are tuples.
        key: what tells a record from others.
        identity: what the records depend on, JSON-able.

    Attributes:
        records: by their keys.

    Raises:
        UserError: the directory holds another experiment, or a file that cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        file_name: str,
        kind: type[RecordT],
        key: Callable[[RecordT], KeyT],
        identity: Mapping[str, Any],
    ) -> None:
        self._lines, self._kind, self._key = directory / file_name, kind, key
        settings, now = directory / SETTINGS, json.loads(json.dumps(identity))
        if settings.is_file():
            before = _read_json(settings)
            if difference := next(_differences(before, now, ""), None):
                raise UserError(
                    f"{directory} holds another study: {difference}; choose another output_dir, or its settings"
                )
        elif self._lines.exists():
            raise UserError(f"{directory} has {file_name} but no {SETTINGS}; choose another output_dir")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(settings, json.dumps(now, indent=2) + "\n")
        self.records: dict[KeyT, RecordT] = {key(record): record for record in self._read()}

    def add(self, record: RecordT) -> None:
        """Keep a record, on disk before this returns."""
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")  # type: ignore[call-overload]
        self.records[self._key(record)] = record

    def _read(self) -> Iterator[RecordT]:
        if not self._lines.is_file():
            return
        drop_cut_off_line(self._lines)
        names = {field.name for field in fields(self._kind)}  # type: ignore[arg-type]
        for number, line in enumerate(self._lines.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                if row.keys() != names:
                    raise ValueError(f"keys {sorted(row)}")
                yield self._kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in row.items()})
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{self._lines}:{number} is no record of this study: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _differences(before: Any, now: Any, key: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield f"{key} was {json.dumps(before)} and is {json.dumps(now)}"
