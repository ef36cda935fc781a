"""Writes and reads the checkpoints of one run.

A checkpoint is a ``RunState``, the actor's weights, optimizer and schedule, the random generators of every rank, the
trees that go on in the next step, and what the run was. It appears under its name only when all of it is on the disk
and its files have been hashed; nothing is loaded whose hashes do not hold. Rank 0 moves directories, every rank
writes and hashes its share.

With ``checkpoint.async_save`` a save keeps training waiting until its tensors have been copied to host memory. A
thread of each rank does all the rest, by the same function that does it without the option.

All functions but :meth:`CheckpointStore.close` are collectives over all ranks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from nemo_ibtpo.checkpoints import MEGATRON, MODEL, manifest
from nemo_ibtpo.checkpoints.choice import choose
from nemo_ibtpo.checkpoints.comparison import differences
from nemo_ibtpo.checkpoints.directory import CheckpointDirectory, check_quickly, read_run, write_run
from nemo_ibtpo.checkpoints.manifest import DamagedError
from nemo_ibtpo.collectives import all_ranks, from_all, from_rank_0, gather_from_all
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import to_yaml
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.megatron import random_state
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.safetensors_io import copy_companions
from nemo_ibtpo.megatron.snapshot import Snapshot
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.training.background import Background
from nemo_ibtpo.training.run_state import RunState
from nemo_ibtpo.tree.trees_in_flight import CarriedTree, read_trees, write_trees

Value = TypeVar("Value")

_RANDOM = "rng"
_CARRIED = "trees_in_flight.safetensors"
_GIB = 2**30


class CheckpointStore:
    """The checkpoints below ``<output_dir>/checkpoints``.

    Args:
        config: of the run.
        actor: whose weights, optimizer and schedule are saved and loaded.
        problem_digests: of the ``training`` and ``validation`` problems.
        console: of this rank.
    """

    def __init__(
        self, config: RunConfig, actor: MegatronActor, problem_digests: Mapping[str, str], console: RunConsole
    ) -> None:
        self._config = config
        self._actor = actor
        self._console = console
        settings = config.checkpoint
        root = Path(config.output_dir) / "checkpoints"
        self._directory = CheckpointDirectory(root, settings.keep_last, settings.keep_best)
        digests = {"model": model_digest(Path(config.model.path)), **problem_digests}
        self._identity = {"config": dataclasses.asdict(config), "digests": digests}
        self._saved_step = 0  # nothing is saved before the first step
        self._background: Background[str] | None = None
        if settings.async_save:
            self._background = Background(config.actor.collective_timeout_s)
        self._blocked_s = 0.0

    def save(self, state: RunState) -> None:
        """Save the state, unless its step is saved already or none has been trained.

        With ``checkpoint.async_save`` it is in place after :meth:`finish`, if not before.
        """
        if state.step == self._saved_step:
            return
        began = time.perf_counter()
        self.finish()  # one at a time: there is memory for one copy
        content = state.as_saved() | {"world_size": dist.get_world_size()} | self._identity
        snapshot = self._actor.snapshot(copied=self._background is not None)
        write = partial(self._write, snapshot, content, state.carried, state.random)
        self._saved_step = state.step
        if self._background is None:
            self._console.say(write())
        else:
            self._background.start(write)
        self._blocked_s += time.perf_counter() - began

    def progress(self) -> dict[str, float]:
        """The seconds for which saving kept training waiting since the last call, as a metric if there were any.

        Raises:
            UserError: what was being saved could not be written.
        """
        if self._background is not None and self._background.is_busy:
            self._report(self._background.result(wait=False))
        seconds, self._blocked_s = self._blocked_s, 0.0
        return {"time/save_s": seconds} if seconds else {}

    def finish(self) -> None:
        """What is being saved is in place when this returns.

        Raises:
            UserError: it could not be written.
        """
        if self._background is not None and self._background.is_busy:
            self._report(self._background.result(wait=True))

    def close(self) -> None:
        """Let what is being saved come to its end, good or bad; no collective."""
        if self._background is not None:
            self._background.close()

    def _report(self, line: str | None) -> None:
        if line is not None:
            self._console.say(line)

    def _write(
        self,
        snapshot: Snapshot,
        content: dict[str, Any],
        carried: tuple[CarriedTree, ...],
        random: random_state.RandomState,
    ) -> str:
        """Write a checkpoint and put it into place; a line that says so."""
        began, step = time.perf_counter(), content["step"]
        try:
            size = self._write_files(self._directory.unfinished(step), snapshot, content, carried, random)
        except (OSError, UserError) as error:
            if dist.get_rank() == 0:  # no collective: other ranks may have failed elsewhere
                self._directory.remove_unfinished()
            if isinstance(error, UserError):
                raise
            raise UserError(f"checkpoints in {self._directory.root}: {error}") from error
        return f"saved {self._directory.path(step)}: {size:.3g} GiB in {time.perf_counter() - began:.1f} s"

    def _write_files(
        self,
        unfinished: Path,
        snapshot: Snapshot,
        content: dict[str, Any],
        carried: tuple[CarriedTree, ...],
        random: random_state.RandomState,
    ) -> float:
        """Write the checkpoint and put it into place; its size in GiB."""
        step, group = content["step"], None if self._background is None else self._background.group
        self._on_rank_0(partial(self._directory.begin, step), group)
        snapshot.write(unfinished / MEGATRON, group)
        own = unfinished / _RANDOM / f"rank_{dist.get_rank()}.safetensors"
        self._on_all(partial(random_state.write, random, own), group)
        self._on_rank_0(partial(self._write_small_files, unfinished, content, carried), group)
        names = self._on_rank_0(partial(manifest.file_names, unfinished), group)
        own_names = all_ranks().mine(names)
        files = _merged(self._on_all(partial(manifest.describe, unfinished, own_names, sync=True), group))
        self._on_rank_0(partial(self._commit, unfinished, files, step), group)
        size: float = sum(record["bytes"] for record in files.values()) / _GIB
        return size

    def resume(self, state: RunState) -> None:
        """Take over the newest whole checkpoint, if there is one and ``checkpoint.resume`` says so.

        Raises:
            UserError: it is damaged and the run shall not fall back, or of a run that cannot be compared.
        """
        steps = self._on_rank_0(self._directory.steps)
        path = choose(
            self._directory,
            steps,
            self._config.checkpoint,
            find_damage=self._find_damage,
            set_aside=lambda step: self._on_rank_0(partial(self._directory.set_aside, step)),
            say=self._console.say,
        )
        if path is not None:
            self._load(path, state)

    def _load(self, path: Path, state: RunState) -> None:
        saved = self._on_rank_0(partial(read_run, path))
        if found := differences(saved, self._identity, self._config):
            if not self._config.checkpoint.force:
                raise UserError(
                    f"{path} is of a run that cannot be compared with this one: {'; '.join(found)}. Go on with the "
                    "same, choose another output_dir, or accept it with checkpoint.force=true"
                )
            self._console.say(f"going on although {'; '.join(found)} (checkpoint.force=true)")
        started = time.perf_counter()
        self._actor.load(path / MEGATRON)
        random = None
        if saved["world_size"] == dist.get_world_size():
            random = random_state.read(path / _RANDOM / f"rank_{dist.get_rank()}.safetensors")
        else:
            self._console.say(
                f"saved on {saved['world_size']} ranks, loaded on {dist.get_world_size()}: random generators start "
                "from their seeds (rollouts draw from seeds of their own)"
            )
        carried = read_trees(path / _CARRIED) if (path / _CARRIED).exists() else ()
        state.restore(saved, carried, random)
        if path.parent.resolve() == self._directory.root.resolve():
            self._saved_step = state.step
        self._console.say(
            f"resuming after step {state.step} of {self._config.trainer.max_steps} from {path}, "
            f"loaded in {time.perf_counter() - started:.1f} s"
        )

    def _find_damage(self, path: Path) -> str | None:
        """Why a checkpoint cannot be used, the same on all ranks; every rank reads a share of its files."""

        def look() -> tuple[dict[str, dict[str, Any]], str | None]:
            try:
                return check_quickly(path), None
            except DamagedError as damage:
                return {}, str(damage)

        files, damage = self._on_rank_0(look)
        if damage is not None:
            return damage
        found = gather_from_all(manifest.find_damage(path, all_ranks().mine(list(files)), files))
        return next((damage for damage in found if damage is not None), None)

    def _write_small_files(self, directory: Path, content: dict[str, Any], carried: tuple[CarriedTree, ...]) -> None:
        (directory / MODEL).mkdir()
        copy_companions(Path(self._config.model.path), directory / MODEL)
        (directory / "config.yaml").write_text(to_yaml(self._config), encoding="utf-8")
        if carried:
            write_trees(directory / _CARRIED, carried)
        write_run(directory, content)

    def _commit(self, unfinished: Path, files: Mapping[str, Mapping[str, Any]], step: int) -> None:
        manifest.write_manifest(unfinished, files)
        self._directory.commit(step)

    def _on_rank_0(self, function: Callable[[], Value], group: dist.ProcessGroup | None = None) -> Value:
        """:func:`from_rank_0` of something that reads or writes checkpoints."""
        return from_rank_0(partial(self._with_place, function), group)

    def _on_all(self, function: Callable[[], Value], group: dist.ProcessGroup | None) -> list[Value]:
        """:func:`from_all` of something that reads or writes checkpoints."""
        return from_all(partial(self._with_place, function), group)

    def _with_place(self, function: Callable[[], Value]) -> Value:
        try:
            return function()
        except (OSError, DamagedError) as error:
            raise UserError(f"checkpoints in {self._directory.root}: {error}") from error


def model_digest(model: Path) -> str:
    """Of the weights and the tokenizer that a run starts from; every rank reads a share of the files."""
    patterns = ("*.safetensors", "config.json", "tokenizer*.json", "*.jinja")
    names = from_rank_0(lambda: sorted(path.name for pattern in patterns for path in model.glob(pattern)))
    return manifest.digest_of(_merged(gather_from_all(manifest.describe(model, all_ranks().mine(names)))))


def _merged(parts: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {name: record for part in parts for name, record in part.items()}
