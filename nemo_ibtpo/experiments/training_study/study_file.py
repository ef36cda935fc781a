"""A study as its YAML describes it: arms x seeds x tasks, and what they are compared with.

    output_dir: runs/studies/tiny
    overrides: [...]            # of every run, as `nemo-ibtpo train` takes them
    tasks:
      <task>: {recipe: <path from the study's file>, base_model: {...}}
    groups:
      <group>: {seeds: [1, 2, 3], compared_with: <arm>, arms: {<arm>: [overrides of this arm alone]}}
    final: {num_prompts: 400, samples_per_prompt: 8}    # optional: an evaluation of what each run has trained
    simulated_on: {recipe: <name>, prompt_tokens: 200, response_tokens: 1000}   # optional: what arms would cost there

``base_model`` is what differs from ``conf/demo_base_model.yaml``, or the word ``smollm2``. Every run is composed and
checked before the first one starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose_each
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import check_output_dir, validate

SMOLLM2: Literal["smollm2"] = "smollm2"
_KEYS = {"output_dir", "overrides", "tasks", "groups"}
_OPTIONAL = {"final", "simulated_on"}
# What the study decides itself.
_RESERVED = ("output_dir", "model.path", "seed", "name")


@dataclass(frozen=True)
class Task:
    """Problems and the model that starts on them.

    Attributes:
        name: of the task.
        recipe: path of its recipe.
        base_model: settings that differ from the demo's base model, or ``smollm2``.
        model: directory of the base model, made if it is not there.
    """

    name: str
    recipe: Path
    base_model: Mapping[str, Any] | Literal["smollm2"]
    model: Path


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        task, arm, seed: which one.
        config: of the run.
    """

    task: Task
    arm: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Unique in the study."""
        return f"{self.task.name}/{self.arm}/seed_{self.seed}"


@dataclass(frozen=True)
class Group:
    """Arms that one table compares.

    Attributes:
        name: of the group.
        seeds: of every arm of the group.
        compared_with: the arm, perhaps of another group, that the differences are taken from.
        arms: what is special about each, as overrides of the command line.
    """

    name: str
    seeds: tuple[int, ...]
    compared_with: str
    arms: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class FinalEvaluation:
    """An evaluation of what a run has trained.

    Attributes:
        num_prompts: the first so many held-out problems.
        samples_per_prompt: samples of each.
    """

    num_prompts: int
    samples_per_prompt: int


@dataclass(frozen=True)
class SimulatedOn:
    """Where the planner says what arms cost.

    Attributes:
        recipe: of a larger model; the overrides of an arm must suit it.
        prompt_tokens, response_tokens: mean lengths there.
    """

    recipe: str
    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True)
class Study:
    """A study; ``runs`` are in the order in which they are made.

    Attributes:
        name: of its file.
        output_dir: everything it writes lies below it.
        tasks, groups: by the YAML.
        runs: group by group, in each seed by seed, in each arm by arm, in each task by task: whatever has been done
            when a study is interrupted is balanced.
        final: the evaluation after training; None takes the last one of the training itself.
        simulated_on: None compares arms at equal tokens only.
    """

    name: str
    output_dir: Path
    tasks: tuple[Task, ...]
    groups: tuple[Group, ...]
    runs: tuple[Run, ...]
    final: FinalEvaluation | None
    simulated_on: SimulatedOn | None


def read_study(path: Path) -> Study:
    """The study of a YAML file, every run checked as far as is possible without its model.

    Raises:
        UserError: something in it is not as it should be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    _check_keys(content, _KEYS, str(path), _OPTIONAL)
    output_dir = Path(_typed(content["output_dir"], str, f"{path}: output_dir"))
    common = _overrides(content["overrides"], f"{path}: overrides")
    tasks = tuple(
        _task(path, name, entry, output_dir)
        for name, entry in _typed(content["tasks"], dict, f"{path}: tasks").items()
    )
    groups = tuple(
        _group(path, name, entry) for name, entry in _typed(content["groups"], dict, f"{path}: groups").items()
    )
    arms = [arm for group in groups for arm in group.arms]
    if not tasks or not arms or len(set(arms)) < len(arms):
        raise UserError(f"{path}: a study needs tasks and arms, every arm under one name")
    for group in groups:
        if group.compared_with not in arms:
            raise UserError(f"{path}: groups.{group.name}.compared_with={group.compared_with} is no arm")
    runs = tuple(_runs(output_dir, tasks, groups, common))
    check_output_dir(str(output_dir))
    final = _section(FinalEvaluation, content.get("final"), f"{path}: final")
    for run in runs:
        size = run.config.data.validation.size
        if final and size is not None and final.num_prompts > size:
            raise UserError(
                f"{path}: final.num_prompts={final.num_prompts}, but task {run.task.name} has "
                f"data.validation.size={size}"
            )
    simulated_on = _section(SimulatedOn, content.get("simulated_on"), f"{path}: simulated_on")
    return Study(path.stem, output_dir, tasks, groups, runs, final, simulated_on)


_S = TypeVar("_S", FinalEvaluation, SimulatedOn)


def _section(kind: type[_S], entry: Any, where: str) -> _S | None:
    """An optional section, whose numbers are positive."""
    if entry is None:
        return None
    _check_keys(entry, {field.name for field in fields(kind)}, where)
    types = get_type_hints(kind)
    values = {name: _typed(value, types[name], f"{where}.{name}") for name, value in entry.items()}
    for name, value in values.items():
        if types[name] is int and value < 1:
            raise UserError(f"{where}.{name}={value} must be above 0")
    return kind(**values)


def _runs(output_dir: Path, tasks: Sequence[Task], groups: Sequence[Group], common: Sequence[str]) -> Iterator[Run]:
    for group in groups:
        configs = {}
        for arm, overrides in group.arms.items():
            for task in tasks:
                base = output_dir / task.name / arm
                own = [{"output_dir": f"{base}/seed_{seed}", "seed": seed} for seed in group.seeds]
                # Given as overrides, too, so that a recipe that decides them otherwise is refused.
                words = [f"output_dir='{base}'", f"model.path='{task.model}'", "seed=1"]
                try:
                    configs[arm, task.name] = compose_each(str(task.recipe), [*common, *overrides, *words], own)
                    for config in configs[arm, task.name]:
                        validate(config, "study")  # on one rank: a study trains in its own process
                except UserError as error:
                    raise UserError(f"arm {arm} on task {task.name}: {error}") from None
        for number, seed in enumerate(group.seeds):
            yield from (Run(task, arm, seed, configs[arm, task.name][number]) for arm in group.arms for task in tasks)


def _task(path: Path, name: str, entry: Any, output_dir: Path) -> Task:
    where = f"{path}: tasks.{name}"
    _check_keys(entry, {"recipe", "base_model"}, where)
    base_model = entry["base_model"]
    if base_model != SMOLLM2 and not isinstance(base_model, dict):
        raise UserError(f"{where}.base_model={base_model}: write settings of a base model, or {SMOLLM2}")
    recipe = (path.parent / _typed(entry["recipe"], str, f"{where}.recipe")).resolve()
    return Task(name, recipe, base_model, output_dir / name / "base_model")


def _group(path: Path, name: str, entry: Any) -> Group:
    where = f"{path}: groups.{name}"
    _check_keys(entry, {field.name for field in fields(Group)} - {"name"}, where)
    arms = _typed(entry["arms"], dict, f"{where}.arms")
    seeds = tuple(_typed(seed, int, f"{where}.seeds") for seed in _typed(entry["seeds"], list, f"{where}.seeds"))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{where}.seeds={list(seeds)}: arms need seeds, each once")
    return Group(
        name,
        seeds,
        _typed(entry["compared_with"], str, f"{where}.compared_with"),
        {arm: _overrides(overrides, f"{where}.arms.{arm}") for arm, overrides in arms.items()},
    )


def _overrides(value: Any, where: str) -> list[str]:
    overrides = [_typed(word, str, where) for word in _typed(value, list, where)]
    for word in overrides:
        if word.partition("=")[0] in _RESERVED:
            raise UserError(f"{where}: '{word}': the study itself decides {', '.join(_RESERVED)}")
    return overrides


def _check_keys(value: Any, known: set[str], where: str, optional: Set[str] = frozenset()) -> None:
    keys = set(_typed(value, dict, where)) - optional
    if keys != known:
        wrong = ", ".join(sorted(map(str, keys ^ known)))
        raise UserError(f"{where}: it has the keys {', '.join(sorted(known))}; unknown or missing: {wrong}")


def _typed(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        raise UserError(f"{where}: expected {kind.__name__}, not {value!r}")
    return value
