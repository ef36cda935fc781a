"""Grows the trees of a gradient study, keeps their gradients, and reports.

A unit of work is a prompt under one way of growing: all its repetitions, and the gradients of all arms that learn
from such trees. What is complete is on disk, so that the same command goes on after a kill, with the same trees.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_ibtpo.config.layout import trajectory_tokens
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.experiments.gradient_study.gradient_arms import FOLDER, REFERENCE, GradientStudy, TreeGroup
from nemo_ibtpo.experiments.gradient_study.gradient_errors import (
    ArmErrors,
    ArmGradients,
    arm_errors,
    mean_and_variance,
)
from nemo_ibtpo.experiments.gradient_study.gradient_report import as_table, write_report
from nemo_ibtpo.experiments.gradient_study.sketch import Sketch
from nemo_ibtpo.experiments.gradient_study.tree_gradients import TreeGradients
from nemo_ibtpo.experiments.records import RecordStore
from nemo_ibtpo.experiments.sampling_parts import (
    SamplingParts,
    device_of,
    grow_trees,
    open_engine,
    open_parts,
)
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rollout.engine import RolloutEngine
from nemo_ibtpo.rollout.factory import load_model
from nemo_ibtpo.tree.tree import FloatArray, Tree

GRADIENTS = "gradients.jsonl"
# A pass holds a mask of the square of its tokens; the larger ones of a cut tree only cost more attention.
_PASS_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Record:
    """An arm's gradient at one prompt.

    Attributes:
        arm, prompt_id: which one.
        settings: digest of the arm's.
        mean: of the sketches over repetitions; float32 in base64.
        variance: of one sketch, unbiased, summed over its entries.
        tokens: sampled for a tree, mean over repetitions.
        mixed: share of the trees whose rewards differ.
    """

    arm: str
    prompt_id: str
    settings: str
    mean: str
    variance: float
    tokens: float
    mixed: float


Store = RecordStore[tuple[str, str], Record]


def run_gradient_study(study: GradientStudy, console: RunConsole) -> list[ArmErrors]:
    """Compute what is missing, report, and return the errors.

    Raises:
        UserError: there are too few problems, or the directory holds another study.
    """
    config = study.common
    directory = Path(config.output_dir) / FOLDER
    with open_parts(config, study.dataset, study.num_prompts, console) as parts:
        store = RecordStore(
            directory,
            GRADIENTS,
            Record,
            lambda record: (record.settings, record.prompt_id),
            study.identity() | parts.identity(config),
        )
        work = [(group, _missing(study, group, parts.problems, store)) for group in study.groups()]
        if store.records:
            console.say(f"{len(store.records)} gradients are in {directory} already")
        if any(problems for _, problems in work):
            gradients = _gradients(study)
            with open_engine(config, parts, directory) as engine:
                for group, problems in work:
                    _measure(study, group, problems, parts, engine, gradients, store, console)
    known = {name: _collect(name, study, parts.problems, store) for name in (REFERENCE, *study.arms)}
    errors = arm_errors({name: known[name] for name in study.arms}, known[REFERENCE], study.compared_with)
    console.show(as_table(errors).for_terminal())
    written = write_report(directory, study, errors)
    console.say(f"written: {', '.join(map(str, written))}")
    return errors


def _missing(study: GradientStudy, group: TreeGroup, problems: Sequence[Problem], store: Store) -> list[Problem]:
    digests = [study.digest(arm) for arm in group.arms]
    return [p for p in problems if any((digest, p.problem_id) not in store.records for digest in digests)]


def _gradients(study: GradientStudy) -> TreeGradients:
    config = study.common
    model = load_model(
        config.model.path,
        dtype=TORCH_DTYPES[config.model.dtype],
        device=device_of(config),
        max_model_len=trajectory_tokens(config),
    ).eval()
    return TreeGradients(
        model,
        temperature=config.rollout.temperature,
        max_tokens=max(trajectory_tokens(config), _PASS_TOKENS),
        sketch=Sketch(list(model.parameters()), study.sketch_size, config.seed),
    )


def _measure(
    study: GradientStudy,
    group: TreeGroup,
    problems: Sequence[Problem],
    parts: SamplingParts,
    engine: RolloutEngine,
    gradients: TreeGradients,
    store: Store,
    console: RunConsole,
) -> None:
    """Grow the trees of these problems and keep the gradients of each as soon as all of its trees are there."""
    names, configs = list(group.arms), list(group.arms.values())
    places = [problem for problem in problems for _ in range(group.repetitions)]
    trees: dict[str, list[Tree]] = {problem.problem_id: [] for problem in problems}
    with console.phase(", ".join(names), len(problems), "prompts") as phase:

        def keep(index: int, tree: Tree) -> None:
            own = trees[places[index].problem_id]
            own.append(tree)
            if len(own) < group.repetitions:
                return
            sketches = [gradients(tree, configs) for tree in own]
            for arm, sketches_RK in zip(names, zip(*sketches, strict=True), strict=True):
                store.add(_record(arm, study.digest(arm), own, sketches_RK))
            own.clear()
            phase.advance()

        if problems:
            grow_trees(group.config, parts, engine, places, keep)


def _record(arm: str, settings: str, trees: Sequence[Tree], sketches_RK: Sequence[FloatArray]) -> Record:
    mean_K, variance = mean_and_variance(sketches_RK)
    rewards = [tree.rewards() for tree in trees]
    return Record(
        arm=arm,
        prompt_id=trees[0].prompt_id,
        settings=settings,
        mean=base64.b64encode(mean_K.astype("<f4").tobytes()).decode(),
        variance=variance,
        tokens=float(np.mean([tree.sampled_tokens for tree in trees])),
        mixed=float(np.mean([own.min() < own.max() for own in rewards])),
    )


def _collect(arm: str, study: GradientStudy, problems: Sequence[Problem], store: Store) -> ArmGradients:
    records = [store.records[study.digest(arm), problem.problem_id] for problem in problems]
    [repetitions] = {group.repetitions for group in study.groups() if arm in group.arms}
    return ArmGradients(
        mean=np.array([np.frombuffer(base64.b64decode(r.mean), dtype="<f4") for r in records], dtype=np.float64),
        variance=np.array([r.variance for r in records]),
        repetitions=repetitions,
        tokens=np.array([r.tokens for r in records]),
        mixed=np.array([r.mixed for r in records]),
    )
