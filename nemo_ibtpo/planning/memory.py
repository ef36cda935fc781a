"""Memory of a GPU by part, phase by phase, on the fullest pipeline stage.

The actor's weights, gradients and optimizer state stay on the device throughout, but for what ``actor.offload`` moves
to the host: it comes back with the first log-probs (weights) or update (the rest), and leaves with the refit.
Activations are handed back after each phase. vLLM sleeps from the end of sampling until the weights are updated, and
then takes its whole share again. The reference policy lies in host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_ibtpo.config.layout import trajectory_tokens
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.activations import inference_bytes, kept_bytes, logits_bytes, training_bytes
from nemo_ibtpo.planning.assumptions import GIB, Assumptions
from nemo_ibtpo.planning.model_shape import ModelShape
from nemo_ibtpo.planning.parameters import Layout, saved_bytes, static_bytes


@dataclass(frozen=True)
class EngineMemory:
    """What the engine takes on a GPU, in bytes.

    Attributes:
        weights: of the model's share on one GPU.
        cache: keys and values.
        cache_tokens: tokens for which there is room in it, over all GPUs of an engine.
        awake: all of it while it samples.
        asleep: what is left of it while the actor works.
    """

    weights: float
    cache: float
    cache_tokens: int
    awake: float
    asleep: float


@dataclass(frozen=True)
class PhaseMemory:
    """A phase at its fullest: bytes by part."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one GPU and its share of the host's.

    Attributes:
        phases: in the order of a step, each on the stage where it is fullest.
        engine: the engine's share of them.
        host: bytes of host memory of one rank by part.
    """

    phases: tuple[PhaseMemory, ...]
    engine: EngineMemory
    host: Mapping[str, float]

    @property
    def worst(self) -> PhaseMemory:
        """The phase that decides whether the run fits."""
        return max(self.phases, key=lambda phase: phase.total)


def plan_memory(
    config: RunConfig, shape: ModelShape, layout: Layout, passes: int, assumptions: Assumptions
) -> MemoryPlan:
    """Memory of a validated configuration.

    Args:
        passes: micro-batches of a rank in an optimizer step.
    """
    tokens = -(-config.actor.max_tokens_per_microbatch // layout.context)
    engine = engine_memory(config, shape, assumptions)
    stages = range(layout.pipeline)
    names = ("sampling", "log-probs", "train", "update", "refit")
    phases = (
        max((_phase(name, stage, config, shape, layout, tokens, passes, engine) for stage in stages), key=_total)
        for name in names
    )
    weights = max(static_bytes(shape, layout, stage).weights for stage in stages)
    stages_static = [static_bytes(shape, layout, stage) for stage in stages]
    host = {
        "optimizer state, off-loaded": max(own.optimizer for own in stages_static) * (config.actor.offload != "none"),
        "weights, off-loaded": weights * (config.actor.offload == "all"),
        "reference policy": weights if config.loss.kl_coef else 0.0,
        "current policy during the reference pass": weights if config.loss.kl_coef else 0.0,
    }
    if config.checkpoint.async_save:
        host["copy of what is saved"] = max(saved_bytes(shape, layout, stage) for stage in stages)
    if config.rollout.engine == "vllm":
        ranks = min(layout.tensor * layout.pipeline * layout.replicas, int(assumptions.gpus_per_node))
        host["share of the node's copy for engines"] = shape.parameters * layout.itemsize / ranks
    fixed = {"CUDA, NCCL, libraries": assumptions.context_gib * GIB} if config.actor.device != "cpu" else {}
    return MemoryPlan(tuple(PhaseMemory(phase.name, {**phase.parts, **fixed}) for phase in phases), engine, host)


def engine_memory(config: RunConfig, shape: ModelShape, assumptions: Assumptions) -> EngineMemory:
    """What the engine takes on each of its GPUs; keys and values get what is left of vLLM's share."""
    rollout, itemsize = config.rollout, 2 if config.model.dtype == "bf16" else 4
    gpus = rollout.tensor_parallel_size
    weights = shape.parameters * itemsize / gpus
    # vLLM repeats key/value heads where there are more GPUs than heads.
    token = 2 * max(1.0, shape.groups / gpus) * shape.head_dim * shape.layers * itemsize
    if rollout.engine == "transformers":
        cache = rollout.transformers.cache_tokens * token
        return EngineMemory(weights, cache, rollout.transformers.cache_tokens, weights + cache, weights + cache)
    if config.actor.device == "cpu":
        cache = rollout.vllm.kv_cache_gib * GIB
        return EngineMemory(weights, cache, int(cache / token), weights + cache, weights + cache)
    share = rollout.vllm.gpu_memory_utilization * assumptions.gpu_memory_gb * GIB
    cache = max(0.0, share - weights - assumptions.engine_workspace_gib * GIB)
    asleep = assumptions.engine_asleep_gib * GIB
    # vLLM counts neither its CUDA context nor NCCL's buffers as part of its share.
    awake = max(share, weights) + assumptions.engine_context_gib * GIB
    return EngineMemory(weights, cache, int(cache / token), awake, asleep)


def shortage(config: RunConfig, plan: MemoryPlan, assumptions: Assumptions) -> str | None:
    """Why the configuration does not fit, or None."""
    limit, worst = assumptions.gpu_memory_gb * GIB, plan.worst
    longest = trajectory_tokens(config)
    if plan.engine.cache_tokens < longest:
        return (
            f"the engine's cache has room for {plan.engine.cache_tokens:,} tokens, fewer than one trajectory of "
            f"{longest:,}"
        )
    if worst.total > limit:
        return f"{worst.name} needs {worst.total / GIB:.1f} GiB of {limit / GIB:.0f}"
    return None


def _total(phase: PhaseMemory) -> float:
    return phase.total


def _phase(
    name: str,
    stage: int,
    config: RunConfig,
    shape: ModelShape,
    layout: Layout,
    tokens: int,
    passes: int,
    engine: EngineMemory,
) -> PhaseMemory:
    actor, static = config.actor, static_bytes(shape, layout, stage)
    parts = {"weights": static.weights, "gradients": static.gradients, "optimizer": static.optimizer}
    if actor.offload != "none" and name not in ("train", "update"):
        parts |= {"gradients": 0.0, "optimizer": 0.0}
    if actor.offload == "all" and name == "sampling":
        parts["weights"] = 0.0
    last = stage == layout.pipeline - 1
    if name in ("log-probs", "train"):
        backward = name == "train"
        kept = kept_bytes(shape, layout, actor, stage, tokens, passes) if backward else 0.0
        passing = (training_bytes if backward else inference_bytes)(shape, layout, actor, stage, tokens)
        logits = logits_bytes(shape, layout, actor, tokens, backward=backward) if last else 0.0
        shown = min(logits, passing)
        parts |= {"activations": kept + passing - shown, "logits": shown, "engine asleep": engine.asleep}
    elif name == "update":
        # The first update makes the moments; TE's and apex's Adam write in place.
        parts["engine asleep"] = engine.asleep
    elif name == "refit":
        # The largest tensor, gathered shard by shard and merged.
        whole = shape.vocab * shape.hidden * layout.itemsize
        # vLLM takes memory for keys and values only when its weights are there.
        parts |= {"gathered tensors": 2.0 * whole, "engine asleep": engine.asleep}
        parts["engine weights"] = max(0.0, min(engine.weights, engine.awake - engine.asleep))
    else:
        parts |= {"engine weights": engine.weights, "engine keys and values": engine.cache}
        parts["engine workspace and context"] = engine.awake - engine.weights - engine.cache
    return PhaseMemory(name, parts)
