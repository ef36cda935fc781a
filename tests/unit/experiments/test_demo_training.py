"""A demo whose training fails must say so and end with an error, whatever torchrun prints.

Starts torchrun with one rank. Not exercised: a run that trains (tests/e2e/test_demo.py).
"""

from __future__ import annotations

import pytest

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.demo.driver import train


def test_a_run_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"training ended with exit status 1; the reason is above: .*recipe=nowhere"):
        train("nowhere", ["trainer.max_steps=1"], num_ranks=1)
    assert "nemo-ibtpo: error: recipe=nowhere: there is no such recipe" in capfd.readouterr().err
