"""Log-probabilities and entropies of tree tokens from vocabulary-parallel logits.

The log-probability of token t is read from the logits at its predecessor, so at a branch several tokens read the
same row. The softmax is float32 whatever the logits' dtype, and rows are taken in chunks: beyond the logits that
the model made, at most one float32 [chunk, V / TP] buffer is alive, in the backward pass too, where the softmax is
recomputed from the saved normaliser.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def tree_logprobs(
    logits_TV: Tensor,
    targets_N: Tensor,
    rows_N: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    chunk_tokens: int,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of the distribution it was drawn from.

    Args:
        logits_TV: [T, V_padded / TP] this rank's columns of the logits, any float dtype.
        targets_N: [N] token ids, global.
        rows_N: [N] row of ``logits_TV`` that predicts each target (its predecessor).
        vocab_size: columns at or beyond it are padding and take no part.
        temperature: divides the logits.
        chunk_tokens: rows whose float32 copy is alive at once.
        group: the tensor-parallel group that shares the vocabulary.

    Returns:
        logprobs [N], differentiable, and entropies [N] in nats, without gradient; float32.
    """
    first = dist.get_rank(group) * logits_TV.shape[1]
    valid = max(0, min(logits_TV.shape[1], vocab_size - first))
    return _TreeLogprobs.apply(logits_TV[:, :valid], targets_N - first, rows_N, temperature, chunk_tokens, group)


class _TreeLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        local_targets: Tensor,
        rows: Tensor,
        temperature: float,
        chunk_tokens: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        owned = (local_targets >= 0) & (local_targets < logits.shape[1])
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logprobs, entropies, normalisers = (
            torch.empty(len(rows), dtype=dtype, device=logits.device) for _ in range(3)
        )
        for start in range(0, len(rows), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            z = logits[rows[chunk]].to(dtype).div_(temperature)
            peak = z.amax(dim=1) if z.shape[1] else z.new_full((len(z),), -torch.inf)
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
            z.sub_(peak[:, None])
            chosen = torch.zeros_like(peak)
            mine = owned[chunk].nonzero().squeeze(1)
            chosen[mine] = z[mine, local_targets[chunk][mine]]
            exp_z = z.exp()
            mass = exp_z.sum(dim=1)
            weighted = torch.einsum("nv,nv->n", exp_z, z)
            # One reduction for the chosen logit, the normaliser's sum and the entropy's.
            sums = torch.stack((chosen, mass, weighted))
            dist.all_reduce(sums, group=group)
            chosen, mass, weighted = sums
            logprobs[chunk] = chosen - mass.log()
            entropies[chunk] = mass.log() - weighted / mass
            normalisers[chunk] = peak + mass.log()
        ctx.save_for_backward(logits, local_targets, rows, normalisers, owned)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        logits, local_targets, rows, normalisers, owned = ctx.saved_tensors
        grad_logprobs = grad_outputs[0]
        grad_logits = torch.zeros_like(logits)
        for start in range(0, len(rows), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            # d logprob / d logits = (one_hot - softmax) / temperature
            scale = grad_logprobs[chunk] / ctx.temperature
            grad = logits[rows[chunk]].to(normalisers.dtype).div_(ctx.temperature)
            grad.sub_(normalisers[chunk][:, None]).exp_().mul_(-scale[:, None])
            mine = owned[chunk].nonzero().squeeze(1)
            grad[mine, local_targets[chunk][mine]] += scale[mine]
            grad_logits.index_add_(0, rows[chunk], grad.to(logits.dtype))
        return grad_logits, None, None, None, None, None
