"""The recipe ``tiny`` on shorter sums, and a model to start from.

Short sums are learned in seconds, shortcuts included, so that rewards differ within most groups.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.experiments.base_models.imitation import load_settings, make_base_model
from nemo_ibtpo.reporting.progress import RunConsole

EASY_SUMS = ["data.train.options.min_terms=3", "data.train.options.max_terms=4"]


def make_tiny_base_model(directory: Path) -> None:
    """Write a model that has learned them for some seconds."""
    settings = replace(load_settings(), num_solutions=4000)
    make_base_model(directory, settings, compose("tiny", EASY_SUMS).data, RunConsole(1))
