"""A run that learns nothing says so once in a row of idle steps, with the cause."""

from __future__ import annotations

import pytest

from nemo_ibtpo.training.idle_steps import IdleSteps


@pytest.mark.parametrize(
    ("metrics", "cause"),
    [
        ({"train/avg_rate": 0.0, "train/truncated_rate": 1.0}, "every response is cut off"),
        ({"train/avg_rate": 0.0, "train/truncated_rate": 0.5}, "every reward is 0"),
        ({"train/avg_rate": 1.0}, "every reward is 1"),
        ({"train/avg_rate": 0.5}, "the rewards of each prompt are equal"),
    ],
)
def test_the_cause_is_named_once(metrics: dict[str, float], cause: str) -> None:
    idle = IdleSteps()
    said = [idle.note(updates, metrics) for updates in (0, 0, 1, 0, 0, 0, 0, 0)]
    assert [text is None for text in said] == [True] * 5 + [False] + [True] * 2
    assert said[5] is not None and cause in said[5]
