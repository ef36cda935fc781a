"""How a run lies over ranks: what follows from its sizes, and which sizes are impossible.

Needs no torch; the same on every rank.
"""

from __future__ import annotations

import math
from typing import Any

from nemo_ibtpo.config.refusals import divisors, refuse_if
from nemo_ibtpo.config.rope import positions
from nemo_ibtpo.config.schema import RunConfig

GPU_BLOCK = 128  # tokens of a block of FlexAttention


def trajectory_tokens(config: RunConfig) -> int:
    """Most tokens of one trajectory, prompt included."""
    return config.data.max_prompt_tokens + config.rollout.max_new_tokens


def model_parallel_ranks(config: RunConfig) -> int:
    """Ranks that compute a micro-batch together: its tensor-, context- and pipeline-parallel ranks."""
    actor = config.actor
    return actor.tensor_model_parallel_size * actor.context_parallel_size * actor.pipeline_model_parallel_size


def engine_ranks(config: RunConfig, world_size: int) -> tuple[int, ...]:
    """The ranks that own an engine, one a replica: the first of the ranks that a replica spreads over."""
    tensor = config.rollout.tensor_parallel_size
    replicas = config.rollout.num_replicas or world_size // tensor
    # Evenly over the ranks, so that fewer replicas than nodes' worth do not crowd on the first node.
    stride = world_size // replicas // tensor * tensor
    return tuple(replica * stride for replica in range(replicas))


def fewest_ranks(config: RunConfig) -> int:
    """The smallest world; others are multiples. Experts are shared by all ranks of a stage."""
    actor = config.actor
    stage = actor.tensor_model_parallel_size * actor.context_parallel_size
    shared = math.lcm(stage, actor.expert_model_parallel_size)
    return shared * actor.pipeline_model_parallel_size


def check_world_size(config: RunConfig, world_size: int) -> None:
    """The layout against the number of ranks."""
    actor = config.actor
    tensor, pipeline = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    refuse_if(
        actor.sequence_parallel and tensor == 1,
        "actor.sequence_parallel=true shards over tensor-parallel ranks, but "
        "actor.tensor_model_parallel_size=1; set it to false",
    )
    context, budget = actor.context_parallel_size, actor.max_tokens_per_microbatch
    refuse_if(
        actor.device != "cpu" and context > 1 and budget < context * GPU_BLOCK,
        f"actor.max_tokens_per_microbatch={budget} leaves some of actor.context_parallel_size={context} ranks "
        f"without a token: they share blocks of {GPU_BLOCK}; use at least {context * GPU_BLOCK}",
    )
    chunks = actor.virtual_pipeline_model_parallel_size
    refuse_if(
        chunks is not None and (chunks < 2 or pipeline == 1),
        f"actor.virtual_pipeline_model_parallel_size={chunks} with actor.pipeline_model_parallel_size={pipeline} "
        "interleaves nothing: both must be at least 2; set the former to null",
    )
    expert = actor.expert_model_parallel_size
    ranks = fewest_ranks(config)
    over_context = f" x actor.context_parallel_size={context}" if context > 1 else ""
    over_experts = f" with actor.expert_model_parallel_size={expert}" if expert > 1 else ""
    refuse_if(
        world_size % ranks != 0,
        f"{world_size} rank{'s' * (world_size != 1)} cannot hold copies of a model on {ranks} "
        f"(actor.tensor_model_parallel_size={tensor} x actor.pipeline_model_parallel_size={pipeline}"
        f"{over_context}{over_experts}); "
        f"start {ranks}, {2 * ranks}, {3 * ranks}, ... (torchrun --nproc-per-node {ranks})",
    )
    _check_replicas(config, world_size)


def _check_replicas(config: RunConfig, world_size: int) -> None:
    rollout = config.rollout
    tensor, replicas = rollout.tensor_parallel_size, rollout.num_replicas
    refuse_if(
        rollout.engine == "transformers" and tensor != 1,
        f"rollout.tensor_parallel_size={tensor}: rollout.engine=transformers keeps the whole model on one device; "
        "set it to 1, or rollout.engine=vllm",
    )
    if replicas is None:
        refuse_if(
            world_size % tensor != 0,
            f"rollout.tensor_parallel_size={tensor} does not divide {world_size} ranks into engines; use one of "
            f"{divisors(world_size)}, or say how many with rollout.num_replicas",
        )
        return
    refuse_if(
        replicas * tensor > world_size,
        f"rollout.num_replicas={replicas} x rollout.tensor_parallel_size={tensor} needs {replicas * tensor} ranks, "
        f"but there {'are' if world_size > 1 else 'is'} {world_size}; use at most {world_size // tensor} replicas",
    )


def check_model(config: RunConfig, hf_config: dict[str, Any]) -> None:
    """The layout and the lengths against the model's config, as ``read_model_directory`` returns it."""
    tensor = config.actor.tensor_model_parallel_size
    shared = {
        "attention heads": hf_config["num_attention_heads"],
        "key/value heads": hf_config["num_key_value_heads"],
    }
    if hf_config["num_experts"] is None:
        shared["MLP channels"] = hf_config["intermediate_size"]
    _check_even("actor.tensor_model_parallel_size", tensor, shared)
    heads = {"attention heads": hf_config["num_attention_heads"]}  # vLLM repeats key/value heads where it must
    _check_even("rollout.tensor_parallel_size", config.rollout.tensor_parallel_size, heads)
    _check_experts(config, hf_config["num_experts"])
    pipeline, layers = config.actor.pipeline_model_parallel_size, hf_config["num_hidden_layers"]
    refuse_if(
        layers % pipeline != 0,
        f"actor.pipeline_model_parallel_size={pipeline} does not divide the model's {layers} layers; "
        f"use one of {divisors(layers)}",
    )
    chunks = config.actor.virtual_pipeline_model_parallel_size or 1
    refuse_if(
        layers % (pipeline * chunks) != 0,
        f"actor.virtual_pipeline_model_parallel_size={chunks} does not divide the {layers // pipeline} layers of a "
        "pipeline stage; use a divisor above 1, or null",
    )
    check_positions("data.max_prompt_tokens", trajectory_tokens(config), hf_config)


def check_positions(prompt_key: str, longest: int, hf_config: dict[str, Any]) -> None:
    """The longest sequence of a run, prompt included, against the model's reach."""
    reach = positions(hf_config)
    refuse_if(
        longest > reach,
        f"{prompt_key} + rollout.max_new_tokens = {longest} tokens, but the model has {reach} positions "
        "(max_position_embeddings of config.json); lower them, or scale positions there (docs/conversion.md)",
    )


def _check_even(key: str, tensor: int, shared: dict[str, int]) -> None:
    uneven = [f"{size} {what}" for what, size in shared.items() if size % tensor]
    refuse_if(
        bool(uneven),
        f"{key}={tensor} does not divide the model's {' and '.join(uneven)}; use one of {divisors(*shared.values())}",
    )


def _check_experts(config: RunConfig, experts: int | None) -> None:
    actor = config.actor
    size, coefficient = actor.expert_model_parallel_size, actor.moe_aux_loss_coef
    if experts is None:
        refuse_if(
            size > 1, f"actor.expert_model_parallel_size={size} shares experts, but the model has none; set it to 1"
        )
        refuse_if(
            coefficient != 0,
            f"actor.moe_aux_loss_coef={'null' if coefficient is None else coefficient} balances experts, but the "
            "model has none; set it to 0",
        )
        return
    refuse_if(
        experts % size != 0,
        f"actor.expert_model_parallel_size={size} does not divide the model's {experts} experts; "
        f"use one of {divisors(experts)}",
    )
    refuse_if(
        actor.tensor_model_parallel_size > 1 and not actor.sequence_parallel,
        f"actor.tensor_model_parallel_size={actor.tensor_model_parallel_size} with experts needs "
        "actor.sequence_parallel=true, so that each rank routes tokens of its own",
    )
