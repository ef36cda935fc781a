"""How far a run has come: what a checkpoint holds beside the actor's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_ibtpo.checkpoints.status import is_done
from nemo_ibtpo.config.schema import TrainerConfig
from nemo_ibtpo.data.loader import Prompts
from nemo_ibtpo.megatron import random_state
from nemo_ibtpo.megatron.parallel import ParallelContext
from nemo_ibtpo.tree.trees_in_flight import CarriedTree, TreesInFlight


class RunState:
    """The state at the end of the last phase that can be gone on from.

    Two phases end in such a state: the training of a step (:meth:`trained`) and its evaluation (:meth:`evaluated`).
    What happens in between, such as drawing prompts or growing trees, changes nothing here, so that a run that stops
    in the middle of a step is saved as it was at the end of the step before.

    Args:
        config: when a run ends.
        prompts: the cursor into them is noted, and set by :meth:`restore`.
        in_flight: so are the trees that outlive a step; None if there are none.
        context: of the actor, whose random generators are noted.

    Attributes:
        step: the last step that has been trained; 0 before the first.
        sampled_tokens: drawn by engines for training from the start of the run up to the end of that step.
        pending: metrics of that step while its evaluation and its line in the log are still to come, else None.
        accuracy: of the step's evaluation; None without one.
        cursor: into the problems.
        carried: trees that go on in the next step.
        random: random generators of this rank.
    """

    def __init__(
        self,
        config: TrainerConfig,
        prompts: Prompts,
        in_flight: TreesInFlight | None,
        context: ParallelContext,
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._in_flight = in_flight
        self._context = context
        self.step = 0
        self.sampled_tokens = 0
        self.pending: dict[str, float] | None = {}  # the base policy is evaluated, and logged as step 0
        self.accuracy: float | None = None
        self._note_positions()

    def trained(self, metrics: dict[str, float], sampled_tokens: int) -> None:
        """A step has been trained.

        Args:
            metrics: of the step, but for its evaluation.
            sampled_tokens: drawn in this step.
        """
        self.step += 1
        self.sampled_tokens += sampled_tokens
        self.pending, self.accuracy = metrics, None
        self._note_positions()

    def evaluated(self, accuracy: float | None) -> None:
        """The step has been evaluated, if it was due, and logged."""
        self.pending, self.accuracy = None, accuracy
        self._note_positions()

    @property
    def is_done(self) -> bool:
        """Whether the last step of the run has been trained."""
        return is_done(self._config, self.step, self.sampled_tokens)

    @property
    def logged_step(self) -> int:
        """The last step that has been logged; -1 if there is none."""
        return self.step if self.pending is None else self.step - 1

    def as_saved(self) -> dict[str, Any]:
        """JSON-able values of what is the same on all ranks."""
        return {
            "step": self.step,
            "accuracy": self.accuracy,
            "sampled_tokens": self.sampled_tokens,
            "metrics": self.pending,
            "cursor": self.cursor,
        }

    def restore(
        self, saved: Mapping[str, Any], carried: tuple[CarriedTree, ...], random: random_state.RandomState | None
    ) -> None:
        """Take over what another run saved.

        Args:
            saved: what :meth:`as_saved` returned there.
            carried: trees that were to go on there.
            random: this rank's generators there; None leaves them as they are.
        """
        if saved["cursor"]["digest"] == self._prompts.digest:  # otherwise accepted with checkpoint.force
            self._prompts.load_state_dict(saved["cursor"])
            if self._in_flight is not None:
                self._in_flight.trees = carried
        if random is not None:
            with self._context.scope():
                random_state.restore(random)
        self.step, self.sampled_tokens = saved["step"], saved["sampled_tokens"]
        self.pending, self.accuracy = saved["metrics"], saved["accuracy"]
        self._note_positions()

    def _note_positions(self) -> None:
        self.cursor = self._prompts.state_dict()
        self.carried = () if self._in_flight is None else self._in_flight.trees
        with self._context.scope():
            self.random = random_state.capture()
