"""What a study compares, from the overrides of its command line.

``samplers=[...]`` names choices of the group ``sampler``, or ``label:choice`` to have one twice. A word
``<label>.<key>=<value>`` sets ``sampler.<key>`` for that one alone; all other overrides go to every sampler's
configuration, which is composed of the recipe as one of a training run.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import yaml

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.paths import conf_dir, did_you_mean
from nemo_ibtpo.config.reference import sections
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.experiments.command_line import check_prompts, split_overrides

FOLDER = "sampling_study"
_LABEL = re.compile(r"\w+(:\w+)?")


@dataclass(frozen=True)
class StudySettings:
    """A study.

    Attributes:
        samplers: configuration of each sampler by its label; they differ in the section ``sampler`` alone.
        num_prompts: problems, the same for all samplers, the first in the order of the run's seed.
        dataset: the problems of ``data.train`` or of ``data.validation``.
    """

    samplers: Mapping[str, RunConfig]
    num_prompts: int
    dataset: Literal["train", "validation"]

    @property
    def common(self) -> RunConfig:
        """A configuration, for what all samplers share."""
        return next(iter(self.samplers.values()))

    def identity(self) -> dict[str, Any]:
        """Everything that the samples depend on, JSON-able: a study goes on only if it is the same."""
        config = self.common
        return {
            "num_prompts": self.num_prompts,
            "dataset": self.dataset,
            "seed": config.seed,
            "model": asdict(config.model),
            "data": asdict(config.data),
            "rollout": asdict(config.rollout),
            "reward": asdict(config.reward),
            "ib_score": asdict(config.ib_score),
            "samplers": {label: asdict(own.sampler) for label, own in self.samplers.items()},
        }


def read_settings(overrides: Sequence[str]) -> StudySettings:
    """The study that the overrides ask for, checked as far as is possible without reading problems or weights.

    Raises:
        UserError: a word is not as it should be, or values contradict each other.
    """
    values: dict[str, Any] = yaml.safe_load((conf_dir() / f"{FOLDER}.yaml").read_text(encoding="utf-8"))
    recipe, values, rest = split_overrides("sample", overrides, values)
    if chosen := next((word for word in rest if word.startswith("sampler=")), None):
        raise UserError(f"'{chosen}': a study compares several; name them as samplers=[...]")
    num_prompts, dataset = values["num_prompts"], values["dataset"]
    check_prompts(num_prompts, dataset)
    choices = _choices(values["samplers"])
    own: dict[str, list[str]] = {label: [] for label in choices}
    common = []
    for word in rest:
        label, dot, key = word.partition(".")
        if dot and label in own:
            own[label].append(f"sampler.{key}")
        elif dot and "=" not in label and label not in {name.partition(".")[0] for name in sections()}:
            raise UserError(f"'{word}': '{label}' is no sampler of this study{did_you_mean(label, list(own))}")
        else:
            common.append(word)
    samplers = {
        label: compose(recipe, [*common, f"sampler={choice}", *own[label]]) for label, choice in choices.items()
    }
    for label, config in samplers.items():
        try:
            validate(config, "sample")
        except UserError as error:
            if "sampler." not in str(error):  # of no sampler alone
                raise
            raise UserError(f"sampler {label} (set a key of it alone with {label}.<key>=<value>): {error}") from None
    return StudySettings(samplers, num_prompts, typing.cast(Literal["train", "validation"], dataset))


def _choices(entries: Any) -> dict[str, str]:
    """Choice of the group ``sampler`` by label, in the order given."""
    if not isinstance(entries, list) or not entries:
        raise UserError(f"samplers={entries}: a study needs a list of samplers, such as samplers=[independent,ib]")
    choices: dict[str, str] = {}
    for entry in entries:
        if not (isinstance(entry, str) and _LABEL.fullmatch(entry)):
            raise UserError(f"samplers: {entry!r} is neither a sampler nor label:sampler")
        label, _, choice = entry.partition(":")
        if label in choices:
            raise UserError(f"samplers: {label} comes twice; tell them apart with label:sampler")
        if label in sections():
            raise UserError(f"samplers: {label} is a section of the configuration; choose another label")
        choices[label] = choice or label
    return choices
