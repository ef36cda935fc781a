"""Which of a run's trees are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_ibtpo.config.schema import IBScoreConfig, TreesConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.inspection.archive import StepTrees, TreeArchive
from nemo_ibtpo.inspection.records import Decode, record_tree
from nemo_ibtpo.methods import StepAdvantages
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True)
class TreeKeeper:
    """Writes some trees of some steps; for one rank only.

    Of a step it takes the trees with the smallest problem ids. An id is a hash of the question, so that this is no
    choice of a kind, and yet the same problems are met again in later epochs and in other runs on the same data.

    Attributes:
        archive: takes the trees.
        config: which steps, how many trees, how much room.
        ib_score: constants of the scores.
        settings: see ``StepTrees``.
        problems: all training problems by their id.
        decode: token ids to text, special tokens included.
    """

    archive: TreeArchive
    config: TreesConfig
    ib_score: IBScoreConfig
    settings: Mapping[str, Any]
    problems: Mapping[str, Problem]
    decode: Decode

    def keep(self, step: int, trees: Sequence[Tree], advantages: Sequence[StepAdvantages]) -> None:
        """Write the trees of a step that is due.

        Args:
            step: at which the trees were sampled.
            trees: all of them, rewards known.
            advantages: of each, nan where there is none.
        """
        ranked = sorted(zip(trees, advantages, strict=True), key=lambda pair: pair[0].prompt_id)
        records = tuple(
            record_tree(tree, self.problems[tree.prompt_id], own, self.ib_score, self.decode)
            for tree, own in ranked[: self.config.trees_per_step]
        )
        content = StepTrees(step, dict(self.settings), records)
        self.archive.write(content, int(self.config.max_gib * 2**30))
