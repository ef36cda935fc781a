"""Which parameters a rank holds, and what Megatron-Core allocates for them.

Counted as ``GPTModel`` builds them: the first stage has the embedding, the last one the final norm and the output
layer (a copy of the embedding where they are tied and there are more stages); experts are spread over the
expert-parallel
ranks and whole on each; norms, router and the norms of queries and keys are on every tensor-parallel rank.

Megatron's DDP keeps weights (with the distributed optimizer) and gradients in one buffer for dense parameters and one
for experts, in each chunk of the model. The paddings are those of its ``param_and_grad_buffer.py`` (0.16.1).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from nemo_ibtpo.config.layout import model_parallel_ranks
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.model_shape import ModelShape

_PARAMETER_ALIGNMENT = 64
_BUCKET_ALIGNMENT = 128
_FP32 = 4


@dataclass(frozen=True)
class Layout:
    """How a model lies over ranks.

    Attributes:
        tensor, context, pipeline, expert, data: sizes of the groups of ranks.
        chunks: chunks of layers on a stage.
        sequence: tensor-parallel ranks that share norms and residuals, 1 without sequence parallelism.
        shards_optimizer: whether optimizer state is spread over data- and context-parallel ranks.
        itemsize: bytes of a weight.
    """

    tensor: int
    context: int
    pipeline: int
    chunks: int
    expert: int
    data: int
    sequence: int
    shards_optimizer: bool
    itemsize: int

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights, experts apart, and sum their gradients."""
        return self.context * self.data

    @property
    def expert_replicas(self) -> int:
        """Ranks of a stage that hold the same experts."""
        return self.tensor * self.replicas // self.expert

    def layers(self, shape: ModelShape) -> int:
        """Layers of one chunk."""
        return shape.layers // self.pipeline // self.chunks

    def vocab(self, shape: ModelShape) -> int:
        """Rows of the embedding on a rank, padding included."""
        return -(-shape.vocab // self.tensor)


def layout_of(config: RunConfig, world_size: int) -> Layout:
    """The layout that a validated configuration asks for."""
    actor = config.actor
    return Layout(
        tensor=actor.tensor_model_parallel_size,
        pipeline=actor.pipeline_model_parallel_size,
        chunks=actor.virtual_pipeline_model_parallel_size or 1,
        expert=actor.expert_model_parallel_size,
        context=actor.context_parallel_size,
        data=world_size // model_parallel_ranks(config),
        sequence=actor.tensor_model_parallel_size if actor.sequence_parallel else 1,
        shards_optimizer=actor.use_distributed_optimizer,
        itemsize=2 if config.model.dtype == "bf16" else 4,
    )


@dataclass(frozen=True)
class Parameters:
    """Sizes of the parameters of one chunk, dense and experts'; ``shared`` is a tied embedding on two stages."""

    dense: tuple[int, ...]
    experts: tuple[int, ...]
    shared: int

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.dense) + sum(self.experts) + self.shared


@dataclass(frozen=True)
class StaticBytes:
    """What lies on a device for the whole run.

    Attributes:
        weights: in the compute precision.
        gradients: float32.
        optimizer: Adam's two moments, and the float32 main weights of bf16 ones.
    """

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All three."""
        return self.weights + self.gradients + self.optimizer


def chunk_parameters(shape: ModelShape, layout: Layout, stage: int, chunk: int) -> Parameters:
    """Parameters of a pipeline stage's chunk on one tensor-parallel rank."""
    h, d, t = shape.hidden, shape.head_dim, layout.tensor
    layer = [h, h, shape.query_channels * h // t, shape.qkv_channels * h // t]
    layer += [shape.qkv_channels // t] * shape.qkv_bias + [d, d] * shape.qk_norm
    experts: list[int] = []
    if shape.experts:
        layer.append(shape.experts * h)
        experts = [2 * shape.expert_ffn * h, shape.expert_ffn * h] * (shape.experts // layout.expert)
    else:
        layer += [(shape.mlp_matrices - 1) * shape.ffn * h // t, shape.ffn * h // t]
    dense, embedding, shared = layer * layout.layers(shape), layout.vocab(shape) * h, 0
    first = stage == chunk == 0
    last = stage == layout.pipeline - 1 and chunk == layout.chunks - 1
    if last:
        dense.append(h)
    if shape.tied and layout.pipeline > 1 and (first or last):
        shared = embedding
    elif first or last:
        dense += [embedding] * (1 if shape.tied else first + last)
    return Parameters(tuple(dense), tuple(experts * layout.layers(shape)), shared)


@functools.cache
def static_bytes(shape: ModelShape, layout: Layout, stage: int) -> StaticBytes:
    """Weights, gradients and optimizer state of a rank on a pipeline stage.

    With the distributed optimizer the state is the mean over the ranks that share it: shards are cut regardless of
    where a parameter ends, and padding falls into the last.
    """
    weights = gradients = optimizer = 0.0
    state = 2 * _FP32 + (_FP32 if layout.itemsize < _FP32 else 0)
    for chunk in range(layout.chunks):
        own = chunk_parameters(shape, layout, stage, chunk)
        for sizes, shared, ranks in (
            (own.dense, own.shared, layout.replicas),
            (own.experts, 0, layout.expert_replicas),
        ):
            count = sum(sizes) + shared
            buffer = count
            if layout.shards_optimizer:
                buffer = _bucket(sizes, ranks) + (_bucket((shared,), ranks) if shared else 0)
            weights += layout.itemsize * buffer
            gradients += _FP32 * buffer
            optimizer += state * (count / ranks if layout.shards_optimizer else count)
    return StaticBytes(weights, gradients, optimizer)


def saved_bytes(shape: ModelShape, layout: Layout, stage: int) -> float:
    """What a rank on a pipeline stage writes of a checkpoint: weights, main weights and moments in float32.

    Ranks that hold the same share the writing.
    """
    total = 0.0
    for chunk in range(layout.chunks):
        own = chunk_parameters(shape, layout, stage, chunk)
        total += (sum(own.dense) + own.shared) / layout.replicas + sum(own.experts) / layout.expert_replicas
    return (layout.itemsize + 3 * _FP32) * total


def _bucket(sizes: tuple[int, ...], ranks: int) -> int:
    """Elements of a buffer in which each parameter and the whole are padded."""
    padded = sum(_pad(size, _PARAMETER_ALIGNMENT) for size in sizes)
    return _pad(padded, math.lcm(ranks, _BUCKET_ALIGNMENT))


def _pad(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
