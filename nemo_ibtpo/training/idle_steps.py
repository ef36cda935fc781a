"""Says why a run learns nothing, once, after its first steps in a row without an update."""

from __future__ import annotations

from collections.abc import Mapping

_STEPS = 3


class IdleSteps:
    """Counts steps in a row in which all trees were left out, since their rewards do not differ."""

    def __init__(self) -> None:
        self._idle = 0

    def note(self, updates: int, metrics: Mapping[str, float]) -> str | None:
        """Take note of a step.

        Args:
            updates: that it made.
            metrics: of its sampling.

        Returns:
            What to say, None if there is nothing to say.
        """
        self._idle = 0 if updates else self._idle + 1
        if self._idle != _STEPS:
            return None
        return f"warning: {_STEPS} steps in a row without an update: {_cause(metrics)}"


def _cause(metrics: Mapping[str, float]) -> str:
    reward = metrics.get("train/avg_rate")
    if metrics.get("train/truncated_rate") == 1.0:
        return "every response is cut off at rollout.max_new_tokens; raise it, or check rollout.stop and the template"
    if reward == 0.0:
        return "every reward is 0; check prompts and gold answers (nemo-ibtpo data check), the verifier, or the model"
    if reward == 1.0:
        return "every reward is 1; the problems are too easy for this model"
    return "the rewards of each prompt are equal; use other problems, or more trajectories a prompt"
