"""Overrides of a command line that belong to an experiment, apart from those that configure its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import recipe_and_overrides


def split_overrides(
    command: str, overrides: Sequence[str], own: dict[str, Any]
) -> tuple[str, dict[str, Any], list[str]]:
    """The recipe, the experiment's own values and the overrides that are left.

    Args:
        command: such as ``sample``, for messages.
        overrides: ``key=value`` each.
        own: the experiment's keys with their defaults.

    Raises:
        UserError: there is not exactly one recipe, or a value is not YAML.
    """
    recipe, others = recipe_and_overrides(overrides, command)
    values, rest = dict(own), []
    for word in others:
        key, _, text = word.partition("=")
        if key in own:
            try:
                values[key] = yaml.safe_load(text)
            except yaml.YAMLError:
                raise UserError(f"'{word}' on the command line is not key=value with a YAML value") from None
        else:
            rest.append(word)
    return recipe, values, rest


def check_prompts(num_prompts: Any, dataset: Any) -> None:
    """The problems that an experiment samples.

    Raises:
        UserError: not a number of problems, or not a data set.
    """
    if type(num_prompts) is not int or num_prompts < 1:
        raise UserError(f"num_prompts={num_prompts}: a study needs an integer of at least 1")
    if dataset not in ("train", "validation"):
        raise UserError(f"dataset={dataset}: problems are those of train or of validation")
