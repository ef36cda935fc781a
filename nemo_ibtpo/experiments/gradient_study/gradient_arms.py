"""What a gradient study compares, from ``conf/gradient_study.yaml`` and the overrides of its command line.

An arm is a list of overrides as ``nemo-ibtpo train`` takes them: how its trees grow and what is learned from them.
Arms share the model, the problems, the engine and its limits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.paths import conf_dir
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.experiments.command_line import check_prompts, split_overrides

FOLDER = "gradient_study"
REFERENCE = "reference"
_HALVES = 2  # the reference comes as two trees, whose difference tells how good it is
_KEYS = {"num_prompts", "dataset", "reference_trajectories", "repetitions", "sketch_size", "compared_with", "arms"}
_OF_AN_ARM = ("sampler", "method", "ib_score", "loss")
_REFERENCE_WORDS = ["method=grpo"]


@dataclass(frozen=True)
class TreeGroup:
    """Arms that learn from the same trees.

    Attributes:
        config: how the trees grow.
        arms: configuration of each arm by its name.
        repetitions: trees of each prompt.
    """

    config: RunConfig
    arms: Mapping[str, RunConfig]
    repetitions: int


@dataclass(frozen=True)
class GradientStudy:
    """A study.

    Attributes:
        arms: configuration of each arm by its name; they differ in what belongs to an arm alone.
        reference: configuration of one half of the reference: chains with GRPO's advantage.
        compared_with: the arm whose error and tokens the others are set against.
        num_prompts: problems, the first in the order of the run's seed.
        dataset: the problems of ``data.train`` or of ``data.validation``.
        repetitions: trees of each prompt and sampler, at least 2.
        sketch_size: numbers kept of a gradient.
    """

    arms: Mapping[str, RunConfig]
    reference: RunConfig
    compared_with: str
    num_prompts: int
    dataset: str
    repetitions: int
    sketch_size: int

    @property
    def common(self) -> RunConfig:
        """A configuration, for what all arms share."""
        return self.reference

    def groups(self) -> list[TreeGroup]:
        """The reference, then the arms, those with the same trees together."""
        by_trees: dict[str, dict[str, RunConfig]] = {}
        for name, config in self.arms.items():
            trees = repr((config.sampler, config.ib_score if config.sampler.name == "ib" else None))
            by_trees.setdefault(trees, {})[name] = config
        of_arms = [TreeGroup(next(iter(own.values())), own, self.repetitions) for own in by_trees.values()]
        return [TreeGroup(self.reference, {REFERENCE: self.reference}, _HALVES), *of_arms]

    def identity(self) -> dict[str, Any]:
        """Everything that the gradients depend on, JSON-able, but the arms: their digests go with the records."""
        config = self.common
        return {
            "num_prompts": self.num_prompts,
            "dataset": self.dataset,
            "sketch_size": self.sketch_size,
            "seed": config.seed,
            "model": asdict(config.model),
            "data": asdict(config.data),
            "rollout": asdict(config.rollout),
            "reward": asdict(config.reward),
        }

    def digest(self, arm: str) -> str:
        """What an arm's gradients depend on beside :meth:`identity`: arms may be added to a study, or changed."""
        [(config, repetitions)] = [(g.arms[arm], g.repetitions) for g in self.groups() if arm in g.arms]
        own = {part: asdict(config)[part] for part in _OF_AN_ARM} | {"repetitions": repetitions}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


def read_study(settings: Path | None, overrides: Sequence[str]) -> GradientStudy:
    """The study that a file and the overrides ask for, checked as far as is possible without problems or weights.

    Args:
        settings: a file in the place of ``conf/gradient_study.yaml``, with the same keys.
        overrides: of the command line.

    Raises:
        UserError: a key or a word is not as it should be, or values contradict each other.
    """
    file = settings or conf_dir() / f"{FOLDER}.yaml"
    values = _read(file)
    arms, compared_with = values.pop("arms"), values.pop("compared_with")
    recipe, values, common = split_overrides("study gradient", overrides, values)
    check_prompts(values["num_prompts"], values["dataset"])
    for name, least in (("reference_trajectories", 4), ("repetitions", 2), ("sketch_size", 16)):
        if type(values[name]) is not int or values[name] < least:
            raise UserError(f"{name}={values[name]}: a gradient study needs an integer of at least {least}")
    if values["reference_trajectories"] % _HALVES:
        raise UserError(f"reference_trajectories={values['reference_trajectories']} must be even: two halves make it")
    if not isinstance(arms, dict) or not all(isinstance(own, list) for own in arms.values()):
        raise UserError(f"{file}: arms is a mapping from names to lists of overrides")
    if compared_with not in arms or REFERENCE in arms:
        raise UserError(f"{file}: compared_with={compared_with} must be one of the arms, and none is '{REFERENCE}'")
    configs = {name: _compose(recipe, [*common, *own], f"arm {name}") for name, own in arms.items()}
    half = f"sampler.initial_rollouts={values['reference_trajectories'] // _HALVES}"
    reference = _compose(recipe, [*common, *_REFERENCE_WORDS, half], REFERENCE)
    for name, config in configs.items():
        if replace(config, **{part: getattr(reference, part) for part in _OF_AN_ARM}) != reference:
            raise UserError(f"arm {name}: arms may set {', '.join(_OF_AN_ARM)}; the rest goes for all of them")
    return GradientStudy(
        configs,
        reference,
        compared_with,
        values["num_prompts"],
        values["dataset"],
        values["repetitions"],
        values["sketch_size"],
    )


def _compose(recipe: str, overrides: Sequence[str], name: str) -> RunConfig:
    try:
        config = compose(recipe, list(overrides))
        validate(config, "gradients")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML: {error}") from None
    if not isinstance(values, dict) or values.keys() != _KEYS:
        wrong = sorted(map(str, _KEYS ^ (values.keys() if isinstance(values, dict) else set())))
        raise UserError(f"{file}: it has the keys {', '.join(sorted(_KEYS))}; unknown or missing: {', '.join(wrong)}")
    return values
