"""Memory of a forward and backward pass: what autograd keeps for each token, and what comes and goes.

Read off the code path and measured on a CPU (``tests/distributed/test_activations.py``). The GPU's differs:

- a norm keeps its input's normalised copy on a CPU, where it is not fused; on a GPU only what the linear layer reads;
- SwiGLU keeps 2 of its 5 intermediates less on a GPU, where Megatron fuses it;
- FlexAttention gets a copy of keys and values for each query head, the CPU's kernel gathers them along the paths.

Trees are taken to be chains: on a CPU, branches make keys and values be gathered once for each path.
"""

from __future__ import annotations

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.planning.model_shape import ModelShape
from nemo_ibtpo.planning.parameters import Layout

_FP32 = 4


def layer_bytes(shape: ModelShape, layout: Layout, actor: ActorConfig, recompute: str) -> float:
    """Bytes that autograd keeps of one token in one layer, on one rank, with ``recompute`` none or selective."""
    on_cpu, size = actor.device == "cpu", layout.itemsize
    h, d, t = shape.hidden / layout.sequence, shape.head_dim, layout.tensor
    q, kv, qkv = shape.query_channels / t, shape.groups * d / t, shape.qkv_channels / t
    half = size < _FP32
    # The composite norm on a CPU keeps x / rms, and in bf16 the float32 copy of x as well.
    normalised = (2 * _FP32 if half else _FP32) if on_cpu else 0
    norms = 2 * h * (normalised + size)
    rope = 4 * d * size
    keeps_qkv = recompute == "selective"  # values are a view of the projection's output
    rotated_keys = kv * size if keeps_qkv else 0
    attention = 2 * q * size + rotated_keys  # rotated queries; the output in the order of the next projection
    if recompute != "selective":
        attention += q * size + _FP32 * shape.heads / t  # output, log-sum-exp
        # Keys and values as the kernel reads them: those of all context-parallel ranks.
        attention += 2 * (kv if on_cpu else q) * size * layout.context
    if shape.qk_norm:
        if half and on_cpu:
            attention += 2 * _FP32 * (q + kv)
        else:
            keeps_qkv = True
            attention += q * size + ((q + kv) * size if on_cpu else 0)
    attention += qkv * size if keeps_qkv else 0
    return 2 * h * size + norms + rope + attention + _mlp_bytes(shape, layout, on_cpu=on_cpu)


def _mlp_bytes(shape: ModelShape, layout: Layout, *, on_cpu: bool) -> float:
    size = layout.itemsize
    if not shape.experts:
        # Without a gate: what goes into the activation, and what comes out of it.
        kept = 2 if not shape.gated else 3 if shape.fused and not on_cpu else 5
        return kept * shape.ffn / layout.tensor * size
    # Every tensor-parallel rank routes tokens of its own; balanced, as many come back as are sent.
    sent = shape.experts_per_token / layout.sequence
    router = (6 * shape.experts + 3 * shape.experts_per_token) * _FP32 / layout.sequence
    router += _FP32 * shape.hidden / layout.sequence if size < _FP32 else 0  # its input in float32
    return sent * (shape.hidden + (6 if on_cpu else 4) * shape.expert_ffn) * size + router


def kept_bytes(shape: ModelShape, layout: Layout, actor: ActorConfig, stage: int, tokens: int, passes: int) -> float:
    """What autograd keeps of all micro-batches in flight on a stage.

    Args:
        tokens: of a micro-batch on a context-parallel rank.
        passes: micro-batches of a rank in an optimizer step.
    """
    h = shape.hidden / layout.sequence * layout.itemsize
    layer = h if actor.recompute == "full" else layer_bytes(shape, layout, actor, actor.recompute)
    chunk = layout.layers(shape) * layer + (0 if actor.recompute == "full" else h)
    kept = in_flight(layout, stage, passes) * chunk
    if stage == layout.pipeline - 1:
        kept += 2 * h if layout.itemsize == _FP32 else 6 * h  # the final norm
    return kept * tokens


def in_flight(layout: Layout, stage: int, passes: int) -> int:
    """Micro-batches, counted once for each chunk, whose activations a stage holds at the fullest.

    One-forward-one-backward holds one for each stage that follows; the interleaved schedule warms up with two for
    each following stage and a round of all stages for each further chunk (Megatron's ``schedules.py``).
    """
    following = layout.pipeline - stage - 1
    if layout.chunks == 1:
        return min(following + 1, passes)
    return min(2 * following + (layout.chunks - 1) * layout.pipeline + 1, passes * layout.chunks)


def layer_backward_bytes(shape: ModelShape, layout: Layout, actor: ActorConfig, tokens: int) -> float:
    """What comes and goes while the fullest layer goes backward: gradients, and with full recomputation the layer."""
    on_cpu, size = actor.device == "cpu", layout.itemsize
    h = shape.hidden / layout.sequence
    if shape.experts:
        wide, weight = (
            shape.experts_per_token / layout.sequence * shape.expert_ffn,
            2 * shape.expert_ffn * shape.hidden,
        )
        wide += shape.experts_per_token * h
    else:
        wide = shape.ffn / layout.tensor
        weight = (shape.mlp_matrices - 1) * shape.ffn * shape.hidden // layout.tensor
    again = layer_bytes(shape, layout, actor, "none") - h * size if actor.recompute == "full" else 0.0
    return tokens * ((2 if on_cpu else 3) * wide * size + 2 * h * size + again) + weight * size


def logits_bytes(shape: ModelShape, layout: Layout, actor: ActorConfig, tokens: int, *, backward: bool) -> float:
    """What is alive between hidden states and log-probabilities: logits, hidden states and the gradients of both."""
    row, size = layout.vocab(shape), layout.itemsize
    hidden, chunk = tokens * shape.hidden, min(actor.logprob_chunk_tokens, tokens) * row
    logits = chunk if actor.fused_logprobs or not backward else tokens * row
    # Hidden states are whole on every rank; beside them the rows of them that predict a token.
    alive = logits * _FP32 + 2 * hidden * size
    if backward:
        # Hidden states' gradient is summed in float32, beside a chunk's share; a chunk in the weight's precision.
        alive += 2 * hidden * _FP32 + (chunk * size if size < _FP32 else 0) + row * shape.hidden * size
    return alive


def training_bytes(shape: ModelShape, layout: Layout, actor: ActorConfig, stage: int, tokens: int) -> float:
    """What is in memory beside :func:`kept_bytes` when a stage is at its fullest in training.

    On the last stage that may be while log-probabilities go backward; logits are in memory on no other stage.
    """
    layer = layer_backward_bytes(shape, layout, actor, tokens)
    if stage < layout.pipeline - 1:
        return layer
    return max(layer, logits_bytes(shape, layout, actor, tokens, backward=True))


def inference_bytes(shape: ModelShape, layout: Layout, actor: ActorConfig, stage: int, tokens: int) -> float:
    """A pass without gradients: the working set of one layer, or the logits."""
    layer = tokens * layer_bytes(shape, layout, actor, "none")
    if stage < layout.pipeline - 1:
        return layer
    return max(layer, logits_bytes(shape, layout, actor, tokens, backward=False))
