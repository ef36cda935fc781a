"""``python -m nemo_ibtpo.demo``: a base model in a minute, then IB-TPO at TP2 x PP2 on 4 CPU ranks."""

from __future__ import annotations

import sys
from pathlib import Path

from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.demo import driver
from nemo_ibtpo.demo.base_model import load_settings, make_base_model
from nemo_ibtpo.reporting.progress import RunConsole


def make_model(directory: Path, config: RunConfig, console: RunConsole) -> bool:
    """The base model that solves the recipe's problems with bad habits."""
    return make_base_model(directory, load_settings(), config.data, console)


if __name__ == "__main__":
    program = "python -m nemo_ibtpo.demo"
    description = "Make a small base model and train it with IB-TPO."
    sys.exit(driver.main(program, "tiny", description, make_model, sys.argv[1:]))
