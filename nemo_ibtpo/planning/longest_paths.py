"""The longest path that fits, by context-parallel ranks and recomputation.

A trajectory lies whole in one micro-batch (:mod:`nemo_ibtpo.tree.microbatches` cuts trees, not paths), so what limits
its length is the memory of log-probs and training with a micro-batch just as long. Everything else stays as the
configuration has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nemo_ibtpo.config.layout import GPU_BLOCK, fewest_ranks
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.assumptions import GIB, Assumptions
from nemo_ibtpo.planning.memory import plan_memory
from nemo_ibtpo.planning.model_shape import ModelShape
from nemo_ibtpo.planning.parameters import layout_of
from nemo_ibtpo.planning.planner import changed

CONTEXTS = (1, 2, 4, 8)
RECOMPUTE = ("none", "selective", "full")
RESPONSES = (8_192, 32_768, 131_072)
_MOST_BLOCKS = 1 << 14  # a rank's, of 128 tokens: two million tokens


@dataclass(frozen=True)
class LongestPath:
    """What a number of context-parallel ranks holds.

    Attributes:
        gpus: in all: as many as planned, or the next larger number that the layout divides.
        tokens: of the longest path, prompt included, by recomputation; 0 if not even one block fits.
    """

    context: int
    gpus: int
    tokens: Mapping[str, int]


def longest_paths(
    config: RunConfig, shape: ModelShape, world_size: int, assumptions: Assumptions
) -> tuple[LongestPath, ...]:
    """The longest path for each of ``CONTEXTS`` and ``RECOMPUTE``, however long the configuration's responses are."""
    paths = []
    for context in CONTEXTS:
        wider = changed(config, {"actor.context_parallel_size": context})
        ranks = fewest_ranks(wider)
        gpus = -(-world_size // ranks) * ranks
        tokens = {
            kind: _longest(changed(wider, {"actor.recompute": kind}), shape, gpus, assumptions) for kind in RECOMPUTE
        }
        paths.append(LongestPath(context, gpus, tokens))
    return tuple(paths)


def least_that_hold(paths: tuple[LongestPath, ...], tokens: int) -> Iterator[tuple[str, LongestPath]]:
    """For each kind of recomputation the fewest context-parallel ranks that hold a path, if any do."""
    for kind in RECOMPUTE:
        for path in paths:
            if path.tokens[kind] >= tokens:
                yield kind, path
                break


def _longest(config: RunConfig, shape: ModelShape, world_size: int, assumptions: Assumptions) -> int:
    context = config.actor.context_parallel_size
    layout = layout_of(config, world_size)

    def fits(blocks: int) -> bool:
        sized = changed(config, {"actor.max_tokens_per_microbatch": blocks * context * GPU_BLOCK})
        # As many micro-batches in flight as the pipeline ever holds.
        phases = plan_memory(sized, shape, layout, layout.pipeline * layout.chunks, assumptions).phases
        return all(
            phase.total <= assumptions.gpu_memory_gb * GIB for phase in phases if phase.name in ("log-probs", "train")
        )

    low, high = 0, _MOST_BLOCKS  # the first fits (nothing is computed), the second is not asked
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * context * GPU_BLOCK
