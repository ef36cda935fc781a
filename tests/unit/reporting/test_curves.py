"""The picture shows the measured points at their steps, gaps included, and refuses what was not measured.

Why this matters: a curve that joins over a NaN, or puts a value at another step, tells a run that did not happen. Not
exercised: how it looks.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.reporting.curves import draw_curves, plot_curves
from nemo_ibtpo.reporting.metrics import FILE_NAME, MetricsWriter, read_metrics


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"val/accuracy": 0.2})
        for step in range(1, 6):
            writer.write(step, {"train/avg_rate": 0.1 * step, "train/cov": math.nan if step == 3 else 0.01})
    return tmp_path / FILE_NAME


def test_small_multiples(tmp_path: Path, metrics: Path) -> None:
    one, many = tmp_path / "one.png", tmp_path / "new" / "many.png"
    plot_curves(metrics, one, ["train/avg_rate"])
    plot_curves(metrics, many, ["val/accuracy", "train/avg_rate", "train/cov", "val/accuracy"])
    # Four panels in rows of three: twice as high and three times as wide as one.
    panels = draw_curves(read_metrics(metrics), ["train/cov"] * 4).axes
    assert [axes.get_subplotspec().num1 for axes in panels] == [0, 1, 2, 3]
    assert panels[0].get_gridspec().get_geometry() == (2, 3)
    assert imread(many).shape[:2] == (2 * imread(one).shape[0], 3 * imread(one).shape[1])
    assert imread(one)[..., :3].std() > 0.01  # something is drawn


def test_points_lie_at_their_steps_and_non_finite_values_are_gaps(metrics: Path) -> None:
    accuracy, cov = draw_curves(read_metrics(metrics), ["val/accuracy", "train/cov"]).axes
    assert (accuracy.get_title(), cov.get_title()) == ("val/accuracy", "train/cov")
    assert accuracy.lines[0].get_xydata().tolist() == [[0, 0.2]]
    steps, values = cov.lines[0].get_xydata().T
    assert steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(values, [0.01, 0.01, math.nan, 0.01, 0.01])


def test_a_metric_that_is_not_there(tmp_path: Path, metrics: Path) -> None:
    with pytest.raises(UserError, match=r"has no 'val/acuracy' \(did you mean 'val/accuracy'\?\)"):
        plot_curves(metrics, tmp_path / "x.png", ["val/acuracy"])
    assert not (tmp_path / "x.png").exists()
