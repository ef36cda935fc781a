"""When a run is saved, from what it goes on, and when it stops.

A checkpoint is the state at the end of a step: weights, optimizer and schedule (the actor's), the cursor into the
problems, the random generators of every rank, and what the run was. It appears under its name only when all of it is
on the disk and its files have been hashed; nothing is loaded whose hashes do not hold.

All methods are collectives over all ranks; rank 0 moves directories.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nemo_ibtpo.checkpoints import MEGATRON, MODEL, manifest
from nemo_ibtpo.checkpoints.comparison import differences
from nemo_ibtpo.checkpoints.directory import CheckpointDirectory, check_quickly, read_run, write_run
from nemo_ibtpo.checkpoints.manifest import DamagedError
from nemo_ibtpo.checkpoints.status import is_done
from nemo_ibtpo.checkpoints.stopping import StopRequest, reason
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import to_yaml
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.megatron import random_state
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.parallel import ParallelContext
from nemo_ibtpo.megatron.safetensors_io import copy_companions
from nemo_ibtpo.reporting.metrics import FILE_NAME, drop_metrics_after
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rollout.engine import RolloutEngine
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished

Value = TypeVar("Value")

_RANDOM = "rng"
_GIB = 2**30
ACCURACY = "val/accuracy"


class StoppedError(Exception):
    """All ranks have agreed to stop; the message says why."""


@dataclasses.dataclass(frozen=True)
class _EndOfStep:
    """The state beside the actor's when a step had been trained.

    Attributes:
        metrics: of the step, if they could not be logged because its evaluation was still to come; else None.
        accuracy: of the step's evaluation, None without one.
        sampled_tokens: drawn for training from the start of the run.
    """

    step: int
    cursor: dict[str, Any]
    random: random_state.RandomState
    metrics: dict[str, float] | None
    accuracy: float | None
    sampled_tokens: int


class Checkpointer:
    """Saves and restores one run.

    Args:
        config: of the run.
        actor, prompts: whose state is saved and restored.
        context: of the actor.
        problem_digests: of the ``training`` and ``validation`` problems.
        stop: what this rank was asked.
        console: of this rank.
    """

    def __init__(
        self,
        config: RunConfig,
        actor: MegatronActor,
        prompts: PromptLoader,
        *,
        context: ParallelContext,
        problem_digests: Mapping[str, str],
        stop: StopRequest,
        console: RunConsole,
    ) -> None:
        self._config = config
        self._actor = actor
        self._prompts = prompts
        self._context = context
        self._stop = stop
        self._console = console
        self._output = Path(config.output_dir)
        settings = config.checkpoint
        self._directory = CheckpointDirectory(self._output / "checkpoints", settings.keep_last, settings.keep_best)
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._identity = {
            "config": dataclasses.asdict(config),
            "digests": {"model": self._model_digest(), **problem_digests},
        }
        self._end: _EndOfStep | None = None
        self._saved_step = 0

    def resume(self) -> None:
        """Take over the newest whole checkpoint, if there is one and the configuration says so.

        What the run wrote after it is removed, so that nothing of it is there twice. Before the metrics are opened.

        Raises:
            UserError: it is damaged and the run shall not fall back, or of a run that cannot be compared.
        """
        if (found := self._choose()) is not None:
            self._take_over(found)
        logged = -1 if self._end is None else self.step - (self.unlogged is not None)
        self._on_rank_0(lambda: self._forget_after(logged))

    @property
    def step(self) -> int:
        """The last step that has been trained."""
        return 0 if self._end is None else self._end.step

    @property
    def sampled_tokens(self) -> int:
        """Tokens that engines have drawn for training up to the end of that step."""
        return 0 if self._end is None else self._end.sampled_tokens

    @property
    def is_done(self) -> bool:
        """Whether that was the last step of the run."""
        return is_done(self._config.trainer, self.step, self.sampled_tokens)

    @property
    def unlogged(self) -> dict[str, float] | None:
        """The metrics of that step if its evaluation is still to come."""
        return None if self._end is None else self._end.metrics

    def end_of_step(
        self, step: int, metrics: dict[str, float] | None, accuracy: float | None, sampled_tokens: int
    ) -> None:
        """Note the state that is saved from now on.

        Args:
            step: has been trained.
            metrics: of the step, if its evaluation is still to come.
            accuracy: of its evaluation.
            sampled_tokens: drawn for training up to its end.
        """
        with self._context.scope():
            random = random_state.capture()
        self._end = _EndOfStep(step, self._prompts.state_dict(), random, metrics, accuracy, sampled_tokens)

    def save_if_due(self) -> None:
        """Save at the end of a step if it is one of those that are saved."""
        assert self._end is not None
        period = self._config.checkpoint.save_period
        if self.is_done or (period and self._end.step % period == 0):
            self.save()

    def save(self) -> None:
        """Save the end of the last step, unless it is saved already or there was none."""
        end = self._end
        if end is None or end.step == self._saved_step:
            return
        started = time.perf_counter()
        directory = self._directory.unfinished(end.step)
        self._on_rank_0(lambda: self._directory.begin(end.step))
        self._actor.save(directory / MEGATRON)
        random_state.write(end.random, directory / _RANDOM / f"rank_{self._rank}.safetensors")
        self._on_rank_0(lambda: self._write_small_files(directory, end))
        names = self._from_rank_0(lambda: manifest.file_names(directory))
        records = self._gather(manifest.describe(directory, self._share(names), sync=True))
        files = {name: record for part in records for name, record in part.items()}
        self._on_rank_0(lambda: self._commit(directory, files, end.step))
        self._saved_step = end.step
        size = sum(record["bytes"] for record in files.values()) / _GIB
        seconds = time.perf_counter() - started
        self._console.say(f"saved {self._directory.path(end.step)}: {size:.3g} GiB in {seconds:.1f} s")

    def raise_if_stopped(self) -> None:
        """A safe point.

        Raises:
            StoppedError: a rank was asked to stop; on all of them.
        """
        code = torch.tensor(self._stop.code)
        dist.all_reduce(code, op=dist.ReduceOp.MAX)
        if code:
            raise StoppedError(reason(int(code)))

    def interruptible(self, engine: RolloutEngine) -> InterruptibleSource:
        """The engine as a source that gives up when this rank is asked to stop."""
        return InterruptibleSource(engine, self._stop)

    # Which checkpoint

    def _choose(self) -> Path | None:
        """The checkpoint to go on from; the same on all ranks."""
        settings = self._config.checkpoint
        steps = self._from_rank_0(self._directory.steps)
        if settings.resume == "never":
            if steps:
                raise UserError(
                    f"{self._directory.root} holds checkpoints up to step {steps[0]}, but checkpoint.resume=never; "
                    "set it to auto, choose another output_dir or remove them"
                )
            return None
        if not steps and settings.resume != "auto":
            path = Path(settings.resume)
            if damage := self._damage(path):
                raise UserError(f"checkpoint.resume={path}: {damage}")
            return path
        for step in steps:
            path = self._directory.path(step)
            damage = self._damage(path)
            if damage is None:
                return path
            if settings.on_damage == "refuse":
                raise UserError(
                    f"{path} is damaged: {damage}; with checkpoint.on_damage=fall_back the newest whole one is used"
                )
            aside = self._from_rank_0(partial(self._directory.set_aside, step))
            self._console.say(f"{path} is damaged: {damage}; set aside as {aside.name}")
        if steps:
            self._console.say("no whole checkpoint is left; the run begins again")
        return None

    def _damage(self, path: Path) -> str | None:
        """Why a checkpoint cannot be used, the same on all ranks; every rank reads a share of its files."""

        def look() -> tuple[dict[str, dict[str, Any]], str | None]:
            try:
                return check_quickly(path), None
            except DamagedError as damage:
                return {}, str(damage)

        files, damage = self._from_rank_0(look)
        if damage is not None:
            return damage
        found = self._gather(manifest.find_damage(path, self._share(list(files)), files))
        return next((damage for damage in found if damage is not None), None)

    def _take_over(self, path: Path) -> None:
        saved = self._from_rank_0(lambda: read_run(path))
        if found := differences(saved, self._identity, self._config):
            if not self._config.checkpoint.force:
                raise UserError(
                    f"{path} is of a run that cannot be compared with this one: {'; '.join(found)}. Go on with the "
                    "same, choose another output_dir, or accept it with checkpoint.force=true"
                )
            self._console.say(f"going on although {'; '.join(found)} (checkpoint.force=true)")
        started = time.perf_counter()
        self._actor.load(path / MEGATRON)
        if saved["cursor"]["digest"] == self._prompts.digest:
            self._prompts.load_state_dict(saved["cursor"])
        if saved["world_size"] == self._world_size:
            with self._context.scope():
                random_state.restore(random_state.read(path / _RANDOM / f"rank_{self._rank}.safetensors"))
        else:
            self._console.say(
                f"saved on {saved['world_size']} ranks, loaded on {self._world_size}: random generators begin anew "
                "(rollouts draw from seeds of their own)"
            )
        step: int = saved["step"]
        self.end_of_step(step, saved["metrics"], saved["accuracy"], saved["sampled_tokens"])
        if path.parent.resolve() == self._directory.root.resolve():
            self._saved_step = step
        self._console.say(
            f"resuming after step {step} of {self._config.trainer.max_steps} from {path}, "
            f"loaded in {time.perf_counter() - started:.1f} s"
        )

    def _forget_after(self, step: int) -> None:
        """Remove what the run logged, evaluated and exported after a step."""
        drop_metrics_after(self._output / FILE_NAME, step)
        TreeArchive(self._output).drop_after(step)
        for path in [*self._output.glob("validation/step_*.jsonl"), *self._output.glob("hf_step_*")]:
            number = path.stem.rpartition("_")[2]
            if number.isdecimal() and int(number) > step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # What is written

    def _write_small_files(self, directory: Path, end: _EndOfStep) -> None:
        (directory / MODEL).mkdir()
        copy_companions(Path(self._config.model.path), directory / MODEL)
        (directory / "config.yaml").write_text(to_yaml(self._config), encoding="utf-8")
        run = {
            "step": end.step,
            "accuracy": end.accuracy,
            "sampled_tokens": end.sampled_tokens,
            "metrics": end.metrics,
            "cursor": end.cursor,
            "world_size": self._world_size,
            **self._identity,
        }
        write_run(directory, run)

    def _commit(self, directory: Path, files: Mapping[str, Mapping[str, Any]], step: int) -> None:
        manifest.write_manifest(directory, files)
        self._directory.commit(step)

    def _model_digest(self) -> str:
        """Of the weights and the tokenizer that the run starts from; every rank reads a share of the files."""
        model = Path(self._config.model.path)
        patterns = ("*.safetensors", "config.json", "tokenizer*.json", "*.jinja")
        names = self._from_rank_0(lambda: sorted(path.name for pattern in patterns for path in model.glob(pattern)))
        records = self._gather(manifest.describe(model, self._share(names)))
        return manifest.digest_of({name: record for part in records for name, record in part.items()})

    # Ranks

    def _share(self, names: Sequence[str]) -> Sequence[str]:
        return names[self._rank :: self._world_size]

    def _gather(self, value: Value) -> list[Value]:
        values: list[Any] = [None] * self._world_size
        dist.all_gather_object(values, value)
        return values

    def _from_rank_0(self, function: Callable[[], Value]) -> Value:
        """What the function returns on rank 0, on every rank; a mistake that it finds is told there.

        Raises:
            UserError: the function raised an ``OSError`` or a ``DamagedError``.
        """
        answer: list[Any] = [None, None]
        if self._rank == 0:
            try:
                answer = [function(), None]
            except (OSError, DamagedError) as error:
                answer = [None, f"checkpoints in {self._directory.root}: {error}"]
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise UserError(answer[1])
        value: Value = answer[0]
        return value

    def _on_rank_0(self, action: Callable[[], None]) -> None:
        self._from_rank_0(action)


class InterruptibleSource:
    """A rollout source that gives up when this rank is asked to stop."""

    def __init__(self, engine: RolloutEngine, stop: StopRequest) -> None:
        self._engine = engine
        self._stop = stop

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Accept requests."""
        self._engine.submit(requests)

    def poll(self) -> list[Rollout]:
        """Rollouts that have finished.

        Raises:
            StoppedError: this rank was asked to stop, and has not asked the others yet.
        """
        if self._stop.code:
            raise StoppedError(reason(self._stop.code))
        return self._engine.poll()

    def progress(self) -> Mapping[Hashable, int]:
        """How far unfinished requests are."""
        return self._engine.progress()

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests."""
        return self._engine.cut(at_least)
