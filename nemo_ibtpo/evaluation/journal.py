"""Sampled responses on disk as they finish, so that a killed evaluation goes on where it was.

The journal is a JSON lines file: the settings, then a response a line. A sampler behind it is asked only for what the
file does not hold; the rest of an evaluation, verification included, runs as if it had been sampled just now.
Requests are identified by their seeds, which derive from the evaluation's seed, the problem and the sample's number.

Invariants (asserted by ``tests/unit/evaluation/test_journal.py``): a file cut at any byte is continued to the same
result; another evaluation's file, a file in use and a damaged one are refused.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.settings import describe_difference
from nemo_ibtpo.files import drop_cut_off_line
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, RolloutSource, Unfinished

_FORMAT = "nemo_ibtpo.evaluation_journal/1"


class Journal:
    """The file of one evaluation, open for as long as it runs.

    Args:
        path: of the file; made if it does not exist.
        settings: of the evaluation; JSON-able.

    Attributes:
        known: responses by the seed of their request: token ids and finish reason.

    Raises:
        UserError: the file belongs to an evaluation with other settings, is damaged, or is in use.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.known: dict[int, tuple[tuple[int, ...], Any]] = {}
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path} is in use: another evaluation writes to this output_dir") from None
        try:
            self._read(settings)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, responses: Sequence[tuple[int, Rollout]]) -> None:
        """Write responses with the seeds of their requests; after a kill of this process they are there."""
        lines = (
            {"seed": seed, "tokens": rollout.tokens, "finish_reason": rollout.finish_reason}
            for seed, rollout in responses
        )
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()

    def take_over(self, other: Journal) -> None:
        """Write down what another journal knows, and delete that one."""
        lines = ({"seed": seed, "tokens": t, "finish_reason": reason} for seed, (t, reason) in other.known.items())
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        self.known |= other.known
        other.remove()

    def remove(self) -> None:
        """Delete the file, once all of it is in a result."""
        self._path.unlink()

    def _read(self, settings: dict[str, Any]) -> None:
        drop_cut_off_line(self._path)
        self._file.seek(0)
        whole = self._file.read()
        header = {"format": _FORMAT, "settings": settings}
        if not whole:
            self._file.write(json.dumps(header).encode() + b"\n")
            self._file.flush()
            return
        number = 1
        try:
            first, *rows = whole.splitlines()
            found = json.loads(first)
            if not isinstance(found, dict) or found.get("format") != _FORMAT:
                raise ValueError("not a journal of this version")
            for number, row in enumerate(rows, start=2):  # noqa: B007
                line = json.loads(row)
                self.known[line["seed"]] = tuple(line["tokens"]), line["finish_reason"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._path}, line {number} is damaged ({error}); remove the file to start again"
            ) from None
        if difference := describe_difference(found["settings"], settings):
            raise UserError(
                f"{self._path.parent} holds an unfinished evaluation with other settings ({difference}); choose "
                "another output_dir, or remove it"
            )


def open_journal(directory: Path, settings: dict[str, Any], rank: int, world_size: int) -> Journal:
    """The journal of a rank, ``journal.jsonl`` on rank 0 and ``journal_<rank>.jsonl`` on the others.

    Rank 0 takes over the journals of ranks that there were before and are no more.

    Raises:
        UserError: see :class:`Journal`.
    """
    journal = Journal(_path(directory, rank), settings)
    if rank == 0:
        for path in sorted(directory.glob("journal_*.jsonl")):
            number = path.stem.removeprefix("journal_")
            if number.isdecimal() and int(number) >= world_size:
                with Journal(path, settings) as old:
                    journal.take_over(old)
    return journal


def _path(directory: Path, rank: int) -> Path:
    return directory / ("journal.jsonl" if rank == 0 else f"journal_{rank}.jsonl")


class JournaledSource(RolloutSource):
    """Samples what the journal does not hold, and writes down what it samples.

    Responses out of the journal have log-probabilities of 0: no figure of an evaluation depends on them.
    """

    def __init__(self, source: RolloutSource, journal: Journal) -> None:
        self._source = source
        self._journal = journal
        self._ready: list[Rollout] = []
        self._seeds: dict[Hashable, int] = {}

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        unknown = []
        for request in requests:
            if (response := self._journal.known.get(request.seed)) is None:
                self._seeds[request.request_id] = request.seed
                unknown.append(request)
            else:
                tokens, finish_reason = response
                self._ready.append(Rollout(request.request_id, tokens, (0.0,) * len(tokens), finish_reason))
        self._source.submit(unknown)

    def poll(self) -> list[Rollout]:
        ready, self._ready = self._ready, []
        sampled = self._source.poll()
        if sampled:
            self._journal.append([(self._seeds.pop(rollout.request_id), rollout) for rollout in sampled])
        return ready + sampled

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        return self._source.progress(at_least)

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        raise RuntimeError("an evaluation samples every response to its end")
