"""Packed trees against depth-first execution: the same layers, forward and backward, on the same tree.

- ``packed``: the whole tree in one pass, attention along the paths by the device's kernel;
- ``depth_first``: one segment between two branches after the other, as a depth-first walk meets them. A segment
  attends to the keys and values of its ancestors, which are kept; its backward pass runs when those of its
  descendants are done and have left their gradients there. Activations of one path are alive at a time.

Both compute the same gradients (``gradient_error``). A few layers of Qwen2.5-1.5B's shape on a GPU, without rotary
positions, embedding and output layer, which are the same for both.

    python benchmarks/depth_first.py

One JSON line for each length of a response: how many times more time depth-first execution takes, and how many times
more memory packing takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from measure import MIB, describe, in_fresh_process, in_turn, peak_memory, ratio, report
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from workloads import SHAPES, Shape, grow_tree

from nemo_ibtpo.megatron.tree_attention import attention_kernel
from nemo_ibtpo.tree.context_parallel import padded_length
from nemo_ibtpo.tree.packing import pack_tree

WAYS = ("packed", "depth_first")
SEED = 2  # as in tree_training.py

# [1, heads, S, d], [1, groups, S, d], [1, groups, S, d] -> [1, heads, S, d]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What is measured: a tree and the layers it goes through."""

    shape: Shape
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int


class Layer:
    """A decoder layer with grouped heads, RMSNorm and SwiGLU."""

    def __init__(self, case: Case, make: Callable[..., Tensor]) -> None:
        self.heads, self.groups, self.dim = case.heads, case.groups, case.hidden // case.heads
        self.qkv = make((case.heads + 2 * case.groups) * self.dim, case.hidden)
        self.out = make(case.hidden, case.heads * self.dim)
        self.up, self.down = make(2 * case.ffn, case.hidden), make(case.hidden, case.ffn)

    def weights(self) -> list[Tensor]:
        """All of them."""
        return [self.qkv, self.out, self.up, self.down]

    def __call__(self, x: Tensor, attention: Attention) -> Tensor:
        """[S, hidden] from [S, hidden]."""
        qkv = linear(rms_norm(x, x.shape[-1:]), self.qkv).view(1, len(x), -1, self.dim).transpose(1, 2)
        query, key, value = qkv.split((self.heads, self.groups, self.groups), dim=1)
        x = x + linear(attention(query, key, value).transpose(1, 2).reshape(len(x), -1), self.out)
        gate, up = linear(rms_norm(x, x.shape[-1:]), self.up).chunk(2, dim=-1)
        return x + linear(silu(gate) * up, self.down)


@dataclass
class Segment:
    """Tokens ``start`` to ``end`` of the packed tree, of which each but the last has one child."""

    start: int
    end: int
    children: list[Segment]


def segments(predecessor: np.ndarray) -> Segment:
    """The tree's segments, below that of the prompt."""
    length = len(predecessor)
    children = np.bincount(predecessor[1:], minlength=length)
    begins = [t for t in range(length) if t == 0 or predecessor[t] != t - 1 or children[t - 1] != 1]
    found = [Segment(start, end, []) for start, end in zip(begins, [*begins[1:], length], strict=True)]
    of_last_token = {segment.end - 1: segment for segment in found}
    for segment in found[1:]:
        of_last_token[int(predecessor[segment.start])].children.append(segment)
    return found[0]


class Passes:
    """Both ways, ready to run."""

    def __init__(self, case: Case) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.kernel = attention_kernel(self.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        generator = torch.Generator(self.device).manual_seed(0)

        def make(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator, device=self.device)
            return values.mul_(0.02).to(self.dtype).requires_grad_()

        self.layers = [Layer(case, make) for _ in range(case.layers)]
        rng = np.random.default_rng(SEED)
        packed = pack_tree(grow_tree(case.shape, case.shape.strategy("random"), rng, prompt_id="0", vocab_size=9))
        self.tokens = len(packed)
        self.root = segments(packed.predecessor)
        length = padded_length(len(packed), self.kernel.LENGTH_MULTIPLE)
        ends = np.concatenate((packed.subtree_end, np.arange(len(packed), length) + 1))
        self.subtree_end = torch.from_numpy(ends).to(self.device)
        self.x = make(length, case.hidden).detach()
        self.upstream = make(length, case.hidden).detach()
        self.upstream[len(packed) :] = 0

    def run(self, way: str) -> None:
        """Forward and backward."""
        for layer in self.layers:
            for weight in layer.weights():
                weight.grad = None
        getattr(self, way)()

    def gradients(self, way: str) -> list[Tensor]:
        """Of all weights."""
        self.run(way)
        grads = [weight.grad for layer in self.layers for weight in layer.weights()]
        return [grad.float() for grad in grads if grad is not None]

    def packed(self) -> None:
        """The whole tree at once."""
        prepared = self.kernel.prepare(self.subtree_end)
        x = self.x
        for layer in self.layers:
            x = layer(x, lambda query, key, value: self.kernel.attend(query, key, value, prepared, None))
        x.backward(self.upstream)

    def depth_first(self) -> None:
        """Segment by segment."""
        self._visit(self.root, [[] for _ in self.layers])

    def _visit(self, segment: Segment, kept: list[list[tuple[Tensor, Tensor]]]) -> None:
        x, own = self.x[segment.start : segment.end], []
        for layer, ancestors in zip(self.layers, kept, strict=True):

            def attention(
                query: Tensor, key: Tensor, value: Tensor, ancestors: list[tuple[Tensor, Tensor]] = ancestors
            ) -> Tensor:
                own.append((key, value))
                keys = torch.cat([*(k for k, _ in ancestors), key], dim=2)
                values = torch.cat([*(v for _, v in ancestors), value], dim=2)
                copies = query.shape[1] // key.shape[1]
                keys, values = (y.repeat_interleave(copies, dim=1) for y in (keys, values))
                mask = causal_lower_right(query.shape[2], keys.shape[2])
                return scaled_dot_product_attention(query, keys, values, attn_mask=mask)

            x = layer(x, attention)
        leaves = [(k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in own]
        for child in segment.children:
            self._visit(child, [[*ancestors, pair] for ancestors, pair in zip(kept, leaves, strict=True)])
        outputs, upstream = [x], [self.upstream[segment.start : segment.end]]
        for made, leaf in zip(own, leaves, strict=True):
            for tensor, received in zip(made, leaf, strict=True):
                if received.grad is not None:
                    outputs.append(tensor)
                    upstream.append(received.grad)
        torch.autograd.backward(outputs, upstream)


def memory(case: Case) -> dict[str, int]:
    """Bytes that a pass of each way needs beyond weights and inputs; gradients count."""
    passes, bytes_of = Passes(case), {}
    for way in WAYS:
        with peak_memory(passes.device) as grown:
            passes.run(way)
        bytes_of[way] = grown()
    return bytes_of


def measure(case: Case, repetitions: int) -> None:
    """Measure both ways and print what was found."""
    peaks = in_fresh_process(memory, case)
    passes = Passes(case)
    measured = in_turn([partial(passes.run, way) for way in WAYS], repetitions, passes.device)
    times = dict(zip(WAYS, measured, strict=True))
    pairs = zip(passes.gradients("packed"), passes.gradients("depth_first"), strict=True)
    error = max(float((one - other).norm() / one.norm()) for one, other in pairs)
    device = describe(passes.device)
    print(
        f"responses of {case.shape.path_tokens} tokens, {passes.tokens} in the tree, {case.layers} layers, {device}"
    )
    for way in WAYS:
        print(f"  {way:11}: {times[way]}, memory {peaks[way] / MIB:.0f} MiB")
    report(
        response_tokens=case.shape.path_tokens,
        tokens=passes.tokens,
        time_ratio=ratio(times["depth_first"].wall, times["packed"].wall),
        memory_ratio=peaks["packed"] / peaks["depth_first"],
        gradient_error=error,
        packed_s=float(np.median(times["packed"].wall)),
        device=device,
        repetitions=repetitions,
    )


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--response-tokens", type=int, nargs="+", default=[2000, 8000] if on_gpu else [500])
    parser.add_argument("--layers", type=int, default=4 if on_gpu else 2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    sizes = {"hidden": 1536, "ffn": 8960, "heads": 12, "groups": 2} if on_gpu else {}
    sizes = sizes or {"hidden": 256, "ffn": 768, "heads": 4, "groups": 2}
    for length in [40] if options.tiny else options.response_tokens:
        shape = replace(SHAPES["paper"], path_tokens=length, step_tokens=5 if options.tiny else 50)
        measure(Case(shape, options.layers, **sizes), options.repetitions)


if __name__ == "__main__":
    main()
