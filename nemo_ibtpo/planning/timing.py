"""Seconds of a step by phase: a roofline over the work that a configuration sets.

- Log-probs and training: multiplications (2 for each weight and token forward, twice that backward, a forward pass
  more with full recomputation) and attention along the path, at ``mfu`` of the peak, stretched by the pipeline's
  bubble. An update reduces gradients and gathers weights over data- and context-parallel ranks, not
  overlapped.
- Rollout: a decoding step reads the weights and the cache, or multiplies, whichever takes longer. An engine decodes
  as many sequences at once as the configuration, the trees in flight and the cache allow; the longest response of a
  step is decoded to its end with few others beside it. Prompts are computed once a tree.
- Refit: ``refit.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_ibtpo.config.layout import engine_ranks
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.memory import EngineMemory
from nemo_ibtpo.planning.model_shape import ModelShape
from nemo_ibtpo.planning.parameters import Layout, static_bytes
from nemo_ibtpo.planning.refit import refit_seconds


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
    rollout, sampler = config.rollout, config.sampler
    engines = len(engine_ranks(config, world_size))
    trees = -(-config.trainer.num_prompts_per_step // engines)
    branches = sampler.trajectories_per_prompt - sampler.initial_rollouts
    per_tree = (sampler.initial_rollouts + assumptions.branch_share * branches) * work.response
    # Rounds follow one another: a tree's longest chain of responses, and how many of its sequences run at once.
    chain = (1 + assumptions.branch_share * (sampler.rounds - 1)) * work.response
    path = work.prompt + work.response / 2
    at_once = max(
        1.0,
        min(
            rollout.max_batch_size,
            min(trees, sampler.max_trees_in_flight) * per_tree / chain,
            engine.cache_tokens / path,
        ),
    )
    bulk = trees * per_tree / at_once
    tail = max(0.0, rollout.max_new_tokens - work.response)
    gpus = rollout.tensor_parallel_size
    prefill = trees * work.prompt * 2 * shape.matmul_parameters_per_token / gpus
    prefill /= assumptions.peak_tflops * 1e12 * assumptions.mfu
    steps = ((bulk, at_once, path), (tail, 1.0, work.prompt + rollout.max_new_tokens))
    return prefill + sum(n * _decode(shape, engine, gpus, batch, seen, assumptions) for n, batch, seen in steps)


def _decode(
    shape: ModelShape, engine: EngineMemory, gpus: int, batch: float, seen: float, assumptions: Assumptions
) -> float:
    """Seconds of a decoding step of ``batch`` sequences that have seen so many tokens each."""
    untouched = 0.0
    if shape.experts:  # experts that no sequence of the batch goes to are not read
        mlp = 3 * shape.hidden * shape.expert_ffn * shape.experts * shape.layers
        untouched = mlp / shape.parameters * (1 - shape.experts_per_token / shape.experts) ** batch
    cache = engine.cache / max(1, engine.cache_tokens) * batch * seen
    read = (engine.weights * (1 - untouched) + cache) / (assumptions.hbm_tb_s * 1e12 * assumptions.hbm_efficiency)
    multiplied = batch * 2 * shape.matmul_parameters_per_token / gpus / (assumptions.peak_tflops * 1e12 * 0.6)
    return max(read, multiplied) + assumptions.decode_overhead_ms / 1e3
