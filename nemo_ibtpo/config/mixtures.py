"""Several data sets in the place of one: ``data.mixture`` and ``data.validation_mixture``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import ValidationError

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.paths import did_you_mean
from nemo_ibtpo.config.refusals import refuse_if
from nemo_ibtpo.config.schema import DataConfig, DatasetConfig


@dataclass(frozen=True)
class Part:
    """One of the data sets that problems come from.

    Attributes:
        key: where it is configured, such as ``data.train`` or ``data.mixture.sums``.
        name: in a mixture; empty for the only data set.
        weight: prompts are drawn in proportion to it.
        dataset: the data set.
    """

    key: str
    name: str
    weight: float
    dataset: DatasetConfig


def training_parts(data: DataConfig) -> list[Part]:
    """The data sets to train on, at least one.

    Raises:
        UserError: an entry of ``data.mixture`` is not as it should be.
    """
    if not data.mixture:
        return [Part("data.train", "", 1.0, data.train)]
    return [_part("data.mixture", name, entry, data.train, weighted=True) for name, entry in data.mixture.items()]


def validation_parts(data: DataConfig) -> list[Part]:
    """The data sets to evaluate on, at least one.

    Raises:
        UserError: an entry of ``data.validation_mixture`` is not as it should be.
    """
    if not data.validation_mixture:
        return [Part("data.validation", "", 1.0, data.validation)]
    return [
        _part("data.validation_mixture", name, entry, data.validation, weighted=False)
        for name, entry in data.validation_mixture.items()
    ]


def all_parts(data: DataConfig) -> list[Part]:
    """The data sets of training and of validation."""
    return [*training_parts(data), *validation_parts(data)]


def _part(section: str, name: str, entry: Any, common: DatasetConfig, *, weighted: bool) -> Part:
    key = f"{section}.{name}"
    refuse_if(not re.fullmatch(r"\w+", name), f"{key}: the name of a data set has letters, digits and _ only")
    refuse_if(not isinstance(entry, Mapping), f"{key}={entry!r} is no mapping of the keys that differ")
    changes = dict(entry)
    weight = changes.pop("weight", None) if weighted else 1.0
    refuse_if(
        isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0,
        f"{key}.weight={'null' if weight is None else weight} must be a number above 0",
    )
    known = [field.name for field in fields(DatasetConfig)]
    for field in changes:
        hint = did_you_mean(str(field), [*known, "weight"] if weighted else known)
        refuse_if(field not in known, f"unknown key '{key}.{field}'{hint}; it has the keys of a data set")
    try:
        dataset = DatasetConfig(**(asdict(common) | changes))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{key}.{field}={first['input']!r}: {first['msg']}") from None
    return Part(key, name, float(weight), dataset)
