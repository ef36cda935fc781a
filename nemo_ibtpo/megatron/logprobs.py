"""Log-probabilities and entropies of tree tokens from vocabulary-parallel logits, in one pass.

The log-probability of token t is read from the logits at its predecessor, so at a branch several tokens read the
same row. The softmax is float32 whatever the logits' dtype, and rows are taken in chunks: beyond the logits that
the model made and their gradient, both in the logits' dtype, at most one chunk of float32 [chunk, V / TP] is alive.
The backward pass recomputes the softmax from its saved normaliser. With gradients of entropies it needs the softmax
and its logarithm at once, and takes half as many rows at a time.
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

    Both are differentiable; entropies that a loss does not use, or detaches, cost the backward pass nothing.

    Args:
        logits_TV: [T, V_padded / TP] this rank's columns of the logits, any float dtype.
        targets_N: [N] token ids, global.
        rows_N: [N] row of ``logits_TV`` that predicts each target (its predecessor).
        vocab_size: columns at or beyond it are padding and take no part.
        temperature: divides the logits.
        chunk_tokens: rows whose float32 copy is alive at once.
        group: the tensor-parallel group that shares the vocabulary.

    Returns:
        logprobs [N] and entropies [N] in nats; float32.
    """
    first = dist.get_rank(group) * logits_TV.shape[1]
    valid = max(0, min(logits_TV.shape[1], vocab_size - first))
    return _TreeLogprobs.apply(logits_TV, targets_N - first, rows_N, valid, temperature, chunk_tokens, group)


class _TreeLogprobs(torch.autograd.Function):
    """With z = logits / temperature and p = softmax(z), entropy H = -sum_j p_j log p_j::

    d logprob / d z_j = [j is the target] - p_j
    d H / d z_j       = -p_j (log p_j + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        local_targets: Tensor,
        rows: Tensor,
        valid: int,
        temperature: float,
        chunk_tokens: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        owned = (local_targets >= 0) & (local_targets < valid)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logprobs, entropies, peaks, log_masses = (
            torch.empty(len(rows), dtype=dtype, device=logits.device) for _ in range(4)
        )
        for start in range(0, len(rows), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            z = logits[rows[chunk], :valid].to(dtype)
            peak = z.amax(dim=1) if valid else z.new_full((len(z),), -torch.inf)
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
            # The peak goes first: what is left of large logits is small, and divided without loss.
            z.sub_(peak[:, None]).div_(temperature)
            chosen = torch.zeros_like(peak)
            mine = owned[chunk].nonzero().squeeze(1)
            chosen[mine] = z[mine, local_targets[chunk][mine]]
            mass = z.exp_().sum(dim=1)
            weighted = z.xlogy_(z).sum(dim=1)  # exp(z) * z in place; 0 where exp(z) is 0
            del z  # before the next chunk is made
            # One reduction for the chosen logit, the normaliser's sum and the entropy's.
            sums = torch.stack((chosen, mass, weighted))
            dist.all_reduce(sums, group=group)
            chosen, mass, weighted = sums
            logprobs[chunk] = chosen - mass.log()
            entropies[chunk] = mass.log() - weighted / mass
            peaks[chunk], log_masses[chunk] = peak, mass.log()
        ctx.save_for_backward(logits, local_targets, rows, owned, entropies, peaks, log_masses)
        ctx.valid, ctx.temperature, ctx.chunk_tokens = valid, temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, local_targets, rows, owned, entropies, peaks, log_masses = ctx.saved_tensors
        grad_logprobs, grad_entropies = grad_outputs
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(peaks)
        grad_logits = torch.zeros_like(logits)
        rows_at_once = ctx.chunk_tokens if grad_entropies is None else max(1, ctx.chunk_tokens // 2)
        for start in range(0, len(rows), rows_at_once):
            chunk = slice(start, start + rows_at_once)
            scale = grad_logprobs[chunk] / ctx.temperature
            grad = logits[rows[chunk], : ctx.valid].to(peaks.dtype)
            grad.sub_(peaks[chunk][:, None]).div_(ctx.temperature).sub_(log_masses[chunk][:, None])  # log p
            if grad_entropies is None:
                grad.exp_().mul_(-scale[:, None])
            else:
                of_entropy = grad_entropies[chunk] / ctx.temperature
                minus_p = grad.exp().neg_()
                grad.add_(entropies[chunk][:, None]).mul_(of_entropy[:, None]).add_(scale[:, None]).mul_(minus_p)
                del minus_p
            mine = owned[chunk].nonzero().squeeze(1)
            grad[mine, local_targets[chunk][mine]] += scale[mine]
            grad_logits[:, : ctx.valid].index_add_(0, rows[chunk], grad.to(logits.dtype))
            del grad
        return grad_logits, None, None, None, None, None, None
