"""The compiled FlexAttention kernel computes what a dense mask says, forward and backward, without a dense mask.

Why it matters: tests on a CPU see the block mask and the mask function, never the kernel that trains.

Random trees with steps of random length, in float32 and bf16, with as many and with fewer key/value heads, compared
with scaled dot-product attention under the dense ancestor mask. Memory of a sequence whose dense mask would not fit
under the limit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packing_oracles import pack_trees
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention
from toy_models import random_tree

from nemo_ibtpo.megatron.attention_cuda import BLOCK, attend, prepare

pytestmark = pytest.mark.gpu


def subtree_ends(seed: int, stretch: int, num_trees: int = 3) -> Tensor:
    """Packed trees with every token made a chain of ``stretch`` tokens, padded to whole blocks."""
    rng = np.random.default_rng(seed)
    ends = pack_trees([random_tree(rng, rollouts=6) for _ in range(num_trees)]).subtree_end
    ends = np.repeat(ends, stretch) * stretch
    padding = np.arange(len(ends), -(-len(ends) // BLOCK) * BLOCK)
    return torch.from_numpy(np.concatenate((ends, padding + 1))).cuda()


def dense_attention(query: Tensor, key: Tensor, value: Tensor, subtree_end_T: Tensor, scale: float) -> Tensor:
    index = torch.arange(len(subtree_end_T), device="cuda")
    mask = (index <= index[:, None]) & (index[:, None] < subtree_end_T)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def values_and_gradients(attention: Tensor, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    return [attention, *torch.autograd.grad((attention * upstream).sum(), inputs)]


@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stretch", [1, 7, 40])
def test_equals_dense_attention(stretch: int, dtype: torch.dtype, groups: int) -> None:
    subtree_end = subtree_ends(stretch, stretch)
    torch.manual_seed(0)
    exact = [
        torch.randn(1, heads, len(subtree_end), 64, device="cuda", dtype=torch.float64).requires_grad_()
        for heads in (8, groups, groups)
    ]
    upstream = torch.randn(1, 8, len(subtree_end), 64, device="cuda", dtype=torch.float64)
    rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    expected = values_and_gradients(dense_attention(*exact, subtree_end, 0.1), exact, upstream)
    theirs = values_and_gradients(dense_attention(*rounded, subtree_end, 0.1), rounded, upstream)
    ours = values_and_gradients(attend(*rounded, prepare(subtree_end), 0.1), rounded, upstream)
    for mine, dense, truth in zip(ours, theirs, expected, strict=True):
        # As far from the truth as the dense kernel of the same precision, give or take its order of sums.
        limit = 2 * (dense.double() - truth).norm() + 1e-5 * truth.norm()
        assert (mine.double() - truth).norm() < limit


def test_lengths_share_one_kernel() -> None:
    torch._dynamo.reset()
    counters.clear()
    for stretch in (5, 11, 30):
        subtree_end = subtree_ends(stretch, stretch)
        query = torch.randn(1, 8, len(subtree_end), 96, device="cuda", dtype=torch.bfloat16)
        key = torch.randn(1, 2, len(subtree_end), 96, device="cuda", dtype=torch.bfloat16)
        attend(query, key, key, prepare(subtree_end), None)
    assert counters["stats"]["unique_graphs"] == 1


def test_no_mask_per_pair_of_tokens() -> None:
    subtree_end = subtree_ends(0, 400, num_trees=6)
    length = len(subtree_end)
    query, key, value = (
        torch.randn(1, heads, length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (8, 2, 2)
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(query, key, value, prepare(subtree_end), None).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < length * length  # bytes of a boolean mask
