"""What every method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_ibtpo.config.schema import IBScoreConfig, LossConfig, SamplerConfig
from nemo_ibtpo.methods.advantages import Advantages, StepAdvantages
from nemo_ibtpo.tree.tree import Tree

if TYPE_CHECKING:
    from nemo_ibtpo.losses import Loss, LossInputs, LossOutput


class Method(BaseModel, ABC):
    """A way to learn from trees; its fields are the keys of the section ``method``, beside ``class``.

    A subclass adds fields, each with a type and a docstring; values of another type and unknown keys are refused.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    zero_variance: Literal["drop", "keep"]
    """``drop`` leaves a group whose rewards are all equal out, ``keep`` gives it advantage 0."""

    @abstractmethod
    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> Advantages:
        """Advantages of one tree, whose rewards are known and differ.

        Args:
            tree: the trajectories of one prompt.
            ib_score: the section of that name: the estimator of values and the constants of the IB-Score.
        """

    def over_update(self, trees: Sequence[Tree], advantages: Sequence[Advantages]) -> Sequence[Advantages]:
        """The advantages of all trees of an update, for a method that normalises over them; at least one tree."""
        return advantages

    def loss_term(self, inputs: LossInputs) -> LossOutput | None:
        """What the method adds to the loss of a micro-batch, over ``inputs.denominator``; None adds nothing."""
        return None

    def check(self, sampler: SamplerConfig, loss: LossConfig) -> None:
        """Refuse what the method cannot be combined with.

        Raises:
            UserError: one line with the key, its value and what would be right.
        """

    @final
    def of_update(self, trees: Sequence[Tree], ib_score: IBScoreConfig) -> list[Advantages | None]:
        """Advantages of the trees of an update, in their order; None for a tree that is left out of training.

        Where all rewards of a tree are equal there is nothing to compare; ``zero_variance`` says what becomes of it.
        """
        mixed = [tree for tree in trees if tree.is_mixed]
        own = [self.advantages(tree, ib_score) for tree in mixed]
        compared = iter(self.over_update(mixed, own) if mixed else [])
        return [next(compared) if tree.is_mixed else self._of_equal(tree) for tree in trees]

    @final
    def with_term(self, loss: Loss) -> Loss:
        """The loss with the method's term."""

        def both(inputs: LossInputs) -> LossOutput:
            value, sums = loss(inputs)
            term = self.loss_term(inputs)
            return (value, sums) if term is None else (value + term[0], sums | term[1])

        return both

    def _of_equal(self, tree: Tree) -> StepAdvantages | None:
        zeros_N = np.zeros(len(tree.nodes))
        return None if self.zero_variance == "drop" else StepAdvantages(zeros_N, zeros_N, zeros_N)
