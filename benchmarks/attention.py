"""Tree attention against a dense mask over the same tokens, and against the trajectories one after the other.

One layer's attention, forward and backward, from random queries, keys and values. Four ways:

- ``tree``: the device's kernel (``attention_cuda`` on a GPU, ``attention_cpu`` on a CPU) on packed trees;
- ``dense``: scaled dot-product attention on the same tokens under a [T, T] ancestor mask;
- ``flat``: the same kernel on every trajectory as a sequence of its own, packed without padding;
- ``flash``: torch's causal attention (flash attention on a GPU) on those trajectories, one call for each.

    python benchmarks/attention.py

The last line is JSON: how many times more time and memory the other ways take, the largest difference between the
outputs of ``tree`` and ``dense`` relative to the largest output, and how long ``prepare`` takes, which all layers
share. ``tree_ns_per_pair`` and ``flash_ns_per_pair`` are times over the pairs of tokens that attend to each other:
what a kernel costs apart from what a tree shares. With ``--shape all`` there is one for each shape, the paper's last.

With ``--context-parallel 2 4`` the sequence is dealt over so many ranks as well, whose shares are computed here one
after the other, without a network. ``context_parallel`` says for each number how evenly time and pairs lie (mean
over largest), how long the slowest rank takes against the undealt sequence, and the bytes of keys and values that all
ranks receive in a forward pass, which are the fewest that their queries need, over those of gathering all of them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import MIB, describe, in_fresh_process, in_turn, peak_memory, ratio, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from workloads import SHAPES, Shape, grow_tree, paths

from nemo_ibtpo.megatron.tree_attention import attention_kernel
from nemo_ibtpo.tree.context_parallel import deal, keys_of_ranks, padded_length
from nemo_ibtpo.tree.packing import concat, pack_tree

WAYS = ("tree", "dense", "flat", "flash")
SEED = 2  # as in tree_training.py


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        trees: packed into one sequence.
        heads, groups, head_dim: of queries, of keys and values, of each.
    """

    shape: Shape
    trees: int
    heads: int
    groups: int
    head_dim: int


class Passes:
    """The ways, ready to run on one case."""

    def __init__(self, case: Case) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.kernel = attention_kernel(self.device)
        rng = np.random.default_rng(SEED)
        packed = concat(
            [
                pack_tree(grow_tree(case.shape, case.shape.strategy("random"), rng, prompt_id=str(i), vocab_size=9))
                for i in range(case.trees)
            ]
        )
        lengths = [len(path) for path in paths(packed)]
        ends = np.cumsum(lengths)
        self.bounds = list(zip(ends - lengths, ends, strict=True))
        self.pairs = {
            "tree": int((packed.depth + 1).sum()),
            "flash": sum(length * (length + 1) // 2 for length in lengths),
        }
        self.depth, self.ends, self.case = packed.depth, packed.subtree_end, case
        self.subtree_end = {
            "tree": self.padded(packed.subtree_end),
            "flat": self.padded(np.repeat(ends, lengths)),  # a chain: every token sees those before it
        }
        self.tokens = {"tree": len(packed), "dense": len(packed), "flat": sum(lengths), "flash": sum(lengths)}
        self.prepared = {way: self.kernel.prepare(ends) for way, ends in self.subtree_end.items()}
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        generator = torch.Generator(self.device).manual_seed(0)
        shapes = {"query": case.heads, "key": case.groups, "value": case.groups}
        self.inputs = {
            way: [
                torch.randn(1, heads, len(ends), case.head_dim, generator=generator, device=self.device, dtype=dtype)
                for heads in shapes.values()
            ]
            for way, ends in self.subtree_end.items()
        }
        self.inputs["dense"] = self.inputs["tree"]
        self.inputs["flash"] = [x[:, :, : sum(lengths)] for x in self.inputs["flat"]]
        self._mask: Tensor | None = None

    def padded(self, subtree_end: np.ndarray, num_ranks: int = 1) -> Tensor:
        length = padded_length(len(subtree_end), self.kernel.LENGTH_MULTIPLE, num_ranks)
        alone = np.arange(len(subtree_end), length) + 1
        return torch.from_numpy(np.concatenate((subtree_end, alone))).to(self.device)

    @property
    def mask(self) -> Tensor:
        """[T, T] of the packed trees, made when it is first asked for."""
        if self._mask is None:
            ends = self.subtree_end["tree"]
            position = torch.arange(len(ends), device=self.device)
            self._mask = (position <= position[:, None]) & (position[:, None] < ends)
        return self._mask

    def run(self, way: str) -> Tensor:
        """Forward and backward; the output."""
        leaves = [x.detach().requires_grad_() for x in self.inputs[way]]
        query, key, value = leaves
        if way == "dense":
            out = scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=True)
        elif way == "flash":
            paths = [[x[:, :, start:end] for x in leaves] for start, end in self.bounds]
            outs = [scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in paths]
            out = torch.cat(outs, dim=2)
        else:
            out = self.kernel.attend(query, key, value, self.prepared[way], None)
        out.backward(out.detach())
        return out.detach()


@dataclass(frozen=True)
class Share:
    """What a context-parallel rank computes: its queries [1, heads, L, head_dim], and the keys and values of all."""

    passes: Passes
    query: Tensor
    key: Tensor
    value: Tensor
    prepared: Any

    def run(self) -> None:
        """Forward and backward."""
        query, key, value = (x.detach().requires_grad_() for x in (self.query, self.key, self.value))
        out = self.passes.kernel.attend(query, key, value, self.prepared, None)
        out.backward(out.detach())


def dealt_over(passes: Passes, num_ranks: int, undealt_s: float, repetitions: int) -> dict[str, float]:
    """How a sequence lies over ranks; their shares are computed one after the other."""
    case, device = passes.case, passes.device
    dealt = deal(passes.depth, passes.kernel.LENGTH_MULTIPLE, num_ranks)
    ends = passes.padded(passes.ends, num_ranks)
    dtype = passes.inputs["tree"][0].dtype
    q, k, v = (
        torch.randn(1, heads, len(ends), case.head_dim, device=device, dtype=dtype)
        for heads in (case.heads, case.groups, case.groups)
    )
    shares = []
    for own in dealt:
        queries = torch.from_numpy(own).to(device)
        shares.append(Share(passes, q[:, :, queries], k, v, passes.kernel.prepare(ends, queries)))
    received = sum(map(len, keys_of_ranks(dealt, ends.cpu().numpy()))) - dealt.size
    seconds = [float(np.median(times.wall)) for times in in_turn([one.run for one in shares], repetitions, device)]
    pairs = np.pad(passes.depth + 1, (0, dealt.size - len(passes.depth)), constant_values=1)[dealt].sum(axis=1)
    return {
        "time_balance": float(np.mean(seconds) / max(seconds)),
        "pair_balance": float(pairs.mean() / pairs.max()),
        "slowest_over_undealt": max(seconds) / undealt_s,
        "received_mib": received * 2 * case.groups * case.head_dim * dtype.itemsize / MIB,
        "received_over_all": received / ((num_ranks - 1) * dealt.size),
    }


def memory(case: Case) -> dict[str, int]:
    """Bytes that a pass of each way needs beyond its inputs; the dense mask counts."""
    passes, bytes_of = Passes(case), {}
    for way in WAYS:
        with peak_memory(passes.device) as grown:
            passes.run(way)
        bytes_of[way] = grown()
    return bytes_of


def measure(name: str, case: Case, repetitions: int, contexts: list[int]) -> None:
    """Measure one shape and print what was found."""
    peaks = in_fresh_process(memory, case)
    passes = Passes(case)
    measured = in_turn([partial(passes.run, way) for way in WAYS], repetitions, passes.device)
    times = dict(zip(WAYS, measured, strict=True))
    (preparing,) = in_turn([lambda: passes.kernel.prepare(passes.subtree_end["tree"])], repetitions, passes.device)
    tree, dense = passes.run("tree").float(), passes.run("dense").float()
    device = describe(passes.device)
    print(f"{name}: {case.trees} tree(s), {case.heads} heads of {case.head_dim}, {case.groups} groups, {device}")
    for way in WAYS:
        print(f"  {way:5} {passes.tokens[way]:6} tokens, {times[way]}, memory {peaks[way] / MIB:.0f} MiB")
    undealt = float(np.median(times["tree"].wall))
    over_ranks = {ranks: dealt_over(passes, ranks, undealt, repetitions) for ranks in contexts}
    for ranks, found in over_ranks.items():
        print(f"  {ranks} ranks: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()))
    report(
        shape=name,
        context_parallel=over_ranks,
        token_ratio=passes.tokens["flat"] / passes.tokens["tree"],
        dense_time_ratio=ratio(times["dense"].wall, times["tree"].wall),
        flat_time_ratio=ratio(times["flat"].wall, times["tree"].wall),
        dense_memory_ratio=peaks["dense"] / peaks["tree"],
        flash_time_ratio=ratio(times["flash"].wall, times["tree"].wall),
        **{f"{way}_ns_per_pair": 1e9 * float(np.median(times[way].wall)) / n for way, n in passes.pairs.items()},
        flat_memory_ratio=peaks["flat"] / peaks["tree"],
        max_rel_err=float((tree - dense).abs().max() / dense.abs().max()),
        prepare_s=float(np.median(preparing.wall)),
        tree_s=float(np.median(times["tree"].wall)),
        device=device,
        repetitions=repetitions,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="paper")
    parser.add_argument("--trees", type=int, default=1)
    parser.add_argument("--heads", type=int, default=12 if torch.cuda.is_available() else 4)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128 if torch.cuda.is_available() else 64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    parser.add_argument("--context-parallel", type=int, nargs="*", default=[], metavar="C", help="numbers of ranks")
    options = parser.parse_args()
    for name in SHAPES if options.shape == "all" else [options.shape]:
        shape = SHAPES[name]
        if options.tiny:
            shape = replace(shape, prompt_tokens=8, path_tokens=40, step_tokens=5)
        case = Case(shape, options.trees, options.heads, options.groups, options.head_dim)
        measure(name, case, options.repetitions, options.context_parallel)


if __name__ == "__main__":
    main()
