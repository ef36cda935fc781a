"""Trains what a study lacks, one run after the other in this process.

A run that a kill cut short begins again; a complete one is left alone. Several processes may work on the same study:
each claims a run by a lock that dies with the process, and leaves the claimed ones to the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers.utils import logging as transformers_logging

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.experiments.base_models import smollm2
from nemo_ibtpo.experiments.base_models.imitation import load_settings, make_base_model
from nemo_ibtpo.experiments.training_study.final_evaluation import FinalEvaluator
from nemo_ibtpo.experiments.training_study.run_results import is_complete, is_trained
from nemo_ibtpo.experiments.training_study.study_file import Run, Study, Task
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.training.run import run_training

LOG = "log.txt"


def run_study(study: Study, console: RunConsole) -> str | None:
    """Make the base models and every run that is neither complete nor claimed by another process.

    Returns:
        Why it stopped before its end; None if nothing is left to begin.

    Raises:
        UserError: a run cannot be made as it is configured.
    """
    transformers_logging.disable_progress_bar()
    for task in study.tasks:
        with _claim(task.model.with_name("base_model.lock"), wait=True):
            _make_model(study, task, console)
    with contextlib.ExitStack() as stack:
        evaluator = FinalEvaluator(study.final, console, stack) if study.final else None
        for number, run in enumerate(study.runs, start=1):
            directory = Path(run.config.output_dir)
            with _claim(directory / "run.lock", wait=False) as mine:
                if not mine or is_complete(run, bool(study.final)):
                    continue
                console.say(f"[{number}/{len(study.runs)}] {run.name}")
                started = time.perf_counter()
                if evaluator is not None:
                    evaluator.open(run)  # before minutes of training: there may be too few problems
                if not is_trained(run) and (stopped := _train(run, directory)) is not None:
                    return stopped
                if evaluator is not None:
                    evaluator(run)
                console.say(f"[{number}/{len(study.runs)}] {run.name}: {time.perf_counter() - started:.0f} s")
    return None


@contextlib.contextmanager
def helpers(study_file: Path, count: int) -> Iterator[None]:
    """Further processes that work on the same study while the block runs; waits for them at its end.

    Raises:
        UserError: one of them failed; it has printed why.
    """
    command = [sys.executable, "-m", "nemo_ibtpo.cli", "study", "run", str(study_file)]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        statuses = [process.wait() for process in processes]
    if failed := [status for status in statuses if status]:
        raise UserError(f"{len(failed)} of {count} helping processes failed; the reason is above")


def _train(run: Run, directory: Path) -> str | None:
    try:
        validate(run.config, "train")
        with (directory / LOG).open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            stopped = run_training(run.config)
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from None
    if stopped is None:
        shutil.rmtree(directory / "checkpoints")  # nobody trains on from here
    return stopped


def _make_model(study: Study, task: Task, console: RunConsole) -> None:
    if isinstance(task.base_model, str):
        smollm2.export(task.model, console)
        return
    settings = load_settings()
    try:
        settings = replace(settings, **task.base_model)
    except TypeError as error:
        raise UserError(f"tasks.{task.name}.base_model: {error}") from None
    data = next(run.config.data for run in study.runs if run.task is task)
    make_base_model(task.model, settings, data, console)


@contextlib.contextmanager
def _claim(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock while the block runs; whether it was free, or has become so if it was waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
