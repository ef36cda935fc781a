"""From ``sampler.name`` to a strategy."""

from __future__ import annotations

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import IBScoreConfig, SamplerConfig
from nemo_ibtpo.tree.branching.entropy import EntropyBranching
from nemo_ibtpo.tree.branching.fixed_width import FixedWidthBranching
from nemo_ibtpo.tree.branching.full import FullTreeBranching
from nemo_ibtpo.tree.branching.ib import IBRanking
from nemo_ibtpo.tree.branching.independent import IndependentSampling
from nemo_ibtpo.tree.branching.protocol import BranchingStrategy
from nemo_ibtpo.tree.branching.random_step import RandomRanking
from nemo_ibtpo.tree.branching.ranked import RankedBranching


def make_strategy(sampler: SamplerConfig, ib_score: IBScoreConfig, max_new_tokens: int) -> BranchingStrategy:
    """The strategy that ``sampler.name`` asks for.

    Args:
        sampler: sizes of the tree.
        ib_score: constants of the IB-Score; only ``ib`` reads them.
        max_new_tokens: most response tokens of a trajectory.

    Raises:
        UserError: not even the root would have room for ``min_new_tokens``.
    """
    if not 1 <= sampler.min_new_tokens <= max_new_tokens:
        raise UserError(
            f"sampler.min_new_tokens={sampler.min_new_tokens}: it must lie between 1 and "
            f"rollout.max_new_tokens={max_new_tokens}, or no node could be branched"
        )
    match sampler.name:
        case "independent":
            return IndependentSampling(sampler.trajectories_per_prompt)
        case "ib":
            return RankedBranching(IBRanking(ib_score), sampler, max_new_tokens)
        case "random":
            return RankedBranching(RandomRanking(), sampler, max_new_tokens)
        case "entropy":
            return EntropyBranching(sampler, max_new_tokens)
        case "fixed_width":
            return FixedWidthBranching(sampler, max_new_tokens)
        case "full":
            return FullTreeBranching(sampler, max_new_tokens)
