"""Seconds of a step by phase: a roofline over the work that a configuration sets.

- Log-probs and training: multiplications (2 for each weight and token forward, twice that backward, a forward pass
  more with full recomputation) and attention along the path, at ``mfu`` of the peak, stretched by the pipeline's
  bubble. An update reduces gradients and gathers weights over data- and context-parallel ranks, not
  overlapped.
- Rollout: real growth on simulated engines (``sampling.py``). A decoding step reads the weights and the cache, or
  multiplies, whichever takes longer.
- Refit: ``refit.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_ibtpo.config.carry_over import trees_in_flight
from nemo_ibtpo.config.layout import engine_ranks
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.engine_model import engine_model
from nemo_ibtpo.planning.memory import EngineMemory
from nemo_ibtpo.planning.model_shape import ModelShape
from nemo_ibtpo.planning.parameters import Layout, static_bytes
from nemo_ibtpo.planning.refit import refit_seconds
from nemo_ibtpo.planning.response_lengths import ResponseLengths
from nemo_ibtpo.planning.sampling import sampling_seconds


@dataclass(frozen=True)
class Work:
    """Tokens of a step.

    Attributes:
        prompt, response: mean tokens of a prompt and of a whole response.
        sampled: response tokens sampled.
        trained: tokens of all trees, each shared prefix once.
        passes: micro-batches of a rank in an optimizer step.
        updates: optimizer steps.
    """

    prompt: float
    response: float
    sampled: float
    trained: float
    passes: int
    updates: int


def work_of(
    config: RunConfig, layout: Layout, assumptions: Assumptions, prompt: float | None, response: float | None
) -> Work:
    """Tokens of a step; lengths that are not given are the longest that the configuration allows."""
    sampler, trainer = config.sampler, config.trainer
    prompt = config.data.max_prompt_tokens if prompt is None else prompt
    response = config.rollout.max_new_tokens if response is None else response
    whole = sampler.initial_rollouts
    branches = sampler.trajectories_per_prompt - whole
    tree = (whole + assumptions.branch_share * branches) * response
    trained = trainer.num_prompts_per_step * (tree + prompt)
    updates = trainer.num_prompts_per_step // trainer.num_prompts_per_update
    per_rank = trained / updates / layout.data
    passes = max(1, -(-int(per_rank) // config.actor.max_tokens_per_microbatch))
    return Work(prompt, response, trainer.num_prompts_per_step * tree, trained, passes, updates)


def predict_seconds(
    config: RunConfig,
    shape: ModelShape,
    layout: Layout,
    world_size: int,
    work: Work,
    engine: EngineMemory,
    assumptions: Assumptions,
) -> dict[str, float]:
    """Seconds of each phase of a step, in their order."""
    forward = work.trained * _forward_flops(shape, work)
    speed = assumptions.peak_tflops * 1e12 * (assumptions.moe_mfu if shape.experts else assumptions.mfu)
    bubble = 1 + (layout.pipeline - 1) / (work.passes * layout.chunks)
    one_pass = forward / world_size / speed * bubble
    seconds = {"rollout": _rollout(config, shape, world_size, work, engine, assumptions)}
    if work.updates > 1:  # the only update of a step starts from the policy that it would ask about
        seconds["log-probs"] = one_pass
    stages = [static_bytes(shape, layout, stage) for stage in range(layout.pipeline)]
    if config.loss.kl_coef:
        swaps = 3 * max(stage.weights for stage in stages) / (assumptions.pcie_gb_s * 1e9)
        seconds["reference log-probs"] = one_pass + swaps
    if config.actor.offload != "none":
        moved = max(stage.optimizer + (stage.weights if config.actor.offload == "all" else 0) for stage in stages)
        seconds["off-loading"] = 2 * moved / (assumptions.pcie_gb_s * 1e9)
    backward = 4 if config.actor.recompute == "full" else 3
    seconds["train"] = backward * one_pass + work.updates * max(
        _update(stage.gradients + stage.weights, stage.optimizer, layout, world_size, assumptions) for stage in stages
    )
    seconds["refit"] = refit_seconds(config, shape, layout, world_size, engine, assumptions)
    return seconds


def _forward_flops(shape: ModelShape, work: Work) -> float:
    """Floating-point operations of a token forward; it attends to half of its path in the mean."""
    seen = work.prompt + work.response / 2
    return 2 * shape.matmul_parameters_per_token + 4 * shape.layers * shape.query_channels * seen


def _update(buffers: float, optimizer: float, layout: Layout, world_size: int, assumptions: Assumptions) -> float:
    between_nodes = world_size > assumptions.gpus_per_node
    link = (assumptions.network_gb_s if between_nodes else assumptions.nvlink_gb_s) * 1e9
    reduced = buffers * (layout.replicas - 1) / layout.replicas
    return reduced / link + 3 * optimizer / (assumptions.hbm_tb_s * 1e12 * assumptions.hbm_efficiency)


def _rollout(
    config: RunConfig,
    shape: ModelShape,
    world_size: int,
    work: Work,
    engine: EngineMemory,
    assumptions: Assumptions,
) -> float:
    rollout, sampler, per_step = config.rollout, config.sampler, config.trainer.num_prompts_per_step
    engines = min(len(engine_ranks(config, world_size)), per_step)
    return sampling_seconds(
        engine_model(shape, engine, rollout.tensor_parallel_size, rollout.max_batch_size, assumptions),
        engines,
        -(-per_step // engines),
        -(-trees_in_flight(config) // engines) if sampler.carry_over else None,
        sampler,
        config.ib_score,
        ResponseLengths(work.response, rollout.max_new_tokens, assumptions.length_sigma, assumptions.branch_share),
        work.prompt,
    )
