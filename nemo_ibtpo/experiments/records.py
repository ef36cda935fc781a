"""What is known of each prompt under each sampler, kept line by line, so that a study that was killed goes on.

Below a study's directory lie ``settings.json``, which says what was sampled, and ``samples.jsonl``. A line is written
when a prompt's tree is complete; a line that a kill left unfinished is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.files import drop_cut_off_line, write_atomically

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt's tree under one sampler.

    Attributes:
        sampler: the sampler's label.
        prompt_id: the problem's identifier.
        rewards: of its trajectories, in no order that means anything.
        sampled_tokens: tokens that the engine drew for it.
        unique_tokens, duplicated_tokens: tokens of the tree, a shared one counted once or for every trajectory.
        seconds: wall time since the sampler's tree before it was complete; they add up to the sampler's time.
        prefill_tokens, cached_prefix_tokens: what the engine computed and re-used of prefixes in that time.
    """

    sampler: str
    prompt_id: str
    rewards: tuple[float, ...]
    sampled_tokens: int
    unique_tokens: int
    duplicated_tokens: int
    seconds: float
    prefill_tokens: int
    cached_prefix_tokens: int


class RecordStore:
    """The records of a study's directory, made if it is not there.

    Args:
        directory: of this study and no other.
        identity: what the records depend on, JSON-able.

    Raises:
        UserError: the directory holds another study, or a file that cannot be read.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self._samples = directory / SAMPLES
        directory.mkdir(parents=True, exist_ok=True)
        settings, now = directory / SETTINGS, json.loads(json.dumps(identity))
        if settings.is_file():
            before = _read_json(settings)
            if difference := next(_differences(before, now, ""), None):
                raise UserError(
                    f"{directory} holds another study: {difference}; choose another output_dir, or its settings"
                )
        elif self._samples.exists():
            raise UserError(f"{directory} has {SAMPLES} but no {SETTINGS}; choose another output_dir")
        else:
            write_atomically(settings, json.dumps(now, indent=2) + "\n")
        self.records: dict[tuple[str, str], Record] = {}
        for record in self._read():
            self.records[record.sampler, record.prompt_id] = record

    def add(self, record: Record) -> None:
        """Keep a record, on disk before this returns."""
        with self._samples.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self.records[record.sampler, record.prompt_id] = record

    def _read(self) -> Iterator[Record]:
        if not self._samples.is_file():
            return
        drop_cut_off_line(self._samples)
        names = {field.name for field in fields(Record)}
        for number, line in enumerate(self._samples.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                if row.keys() != names:
                    raise ValueError(f"keys {sorted(row)}")
                yield Record(**{**row, "rewards": tuple(row["rewards"])})
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{self._samples}:{number} is no record of a sample: {error}") from None


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
