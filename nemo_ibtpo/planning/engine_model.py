"""How long an engine decodes and prefills, and what fits into it: one roofline for plans and simulations."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.memory import EngineMemory
from nemo_ibtpo.planning.model_shape import ModelShape

_DECODE_MFU = 0.6  # of multiplications while decoding, where the batch is so large that they decide


@dataclass(frozen=True)
class EngineModel:
    """One engine on its GPUs.

    Attributes:
        max_batch: most sequences decoded at once.
        cache_tokens: tokens whose keys and values fit.
        step_s: seconds of a decoding step that do not depend on the batch: weights read, and what else a step costs.
        cached_token_s: seconds to read the keys and values of one token.
        sequence_s: seconds to multiply one sequence's token, where that takes longer than reading.
        prefill_token_s: seconds to compute one token of a prefix.
        overhead_s: the part of ``step_s`` that is neither reading nor multiplying.
        untouched: share of the weights that are experts, and the chance that a sequence leaves an expert untouched.
    """

    max_batch: int
    cache_tokens: int
    step_s: float
    cached_token_s: float
    sequence_s: float
    prefill_token_s: float
    overhead_s: float
    untouched: tuple[float, float] = (0.0, 0.0)

    def decode_s(self, batch: float, cached_tokens: float) -> float:
        """Seconds of a decoding step.

        Args:
            batch: sequences.
            cached_tokens: tokens that they have seen, all together.
        """
        share, left = self.untouched
        weights = (self.step_s - self.overhead_s) * (1 - share * left**batch)
        return max(weights + cached_tokens * self.cached_token_s, batch * self.sequence_s) + self.overhead_s


def engine_model(
    shape: ModelShape, memory: EngineMemory, gpus: int, max_batch: int, assumptions: Assumptions
) -> EngineModel:
    """The model of an engine.

    Args:
        shape, memory: of the model, and of the engine on each of its GPUs.
        gpus: that share the model.
        max_batch: most sequences decoded at once.
        assumptions: bandwidth, overhead and peak.
    """
    bandwidth = assumptions.hbm_tb_s * 1e12 * assumptions.hbm_efficiency
    peak = assumptions.peak_tflops * 1e12
    overhead = assumptions.decode_overhead_ms / 1e3
    multiplied = 2 * shape.matmul_parameters_per_token / gpus
    untouched = (0.0, 0.0)
    if shape.experts:
        experts = 3 * shape.hidden * shape.expert_ffn * shape.experts * shape.layers
        untouched = (experts / shape.parameters, 1 - shape.experts_per_token / shape.experts)
    return EngineModel(
        max_batch=max_batch,
        cache_tokens=memory.cache_tokens,
        step_s=memory.weights / bandwidth + overhead,
        cached_token_s=memory.cache / max(1, memory.cache_tokens) / bandwidth,
        sequence_s=multiplied / (peak * _DECODE_MFU),
        prefill_token_s=multiplied / (peak * (assumptions.moe_mfu if shape.experts else assumptions.mfu)),
        overhead_s=overhead,
        untouched=untouched,
    )
