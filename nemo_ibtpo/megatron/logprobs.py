"""Log-probabilities and entropies of tree tokens straight from hidden states, some columns of the logits at a time.

The output layer is part of the computation: its matrix product, the softmax and both their gradients go through the
vocabulary in chunks, so that [T, V / TP] logits are held at no time, neither forward nor backward. The backward pass
multiplies a chunk once more to get its logits back, and writes each row of the weight's gradient once.

Where tokens were drawn from a truncated distribution (``kept_tokens``), the logits of what was cut off are set so low
that they have no part in any sum or gradient.

The log-probability of token t is read at its predecessor, so at a branch several tokens read the same row; a row is
computed once, and a row that no token in the loss reads not at all. Logits and softmax are float32 whatever the
precision of hidden states and weight. Going through the vocabulary, the softmax is rescaled whenever a chunk brings a
higher logit (Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_ibtpo.megatron.kept_tokens import KeptTokens

_CUT_OFF = -1e20  # below any logit; minus infinity would be nan where 0 multiplies it
_FLOOR = 80  # exp(-80) is nothing beside 1, and exponentials that underflow take a CPU many times as long
_COLUMNS = 128  # chunks are whole tiles of a matrix product


def tree_logprobs(
    hidden_Th: Tensor,
    weight_Vh: Tensor,
    targets_N: Tensor,
    rows_N: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    chunk_tokens: int,
    keep_logits: bool,
    group: dist.ProcessGroup,
    kept: KeptTokens | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of the distribution it was drawn from.

    Both are differentiable; entropies that a loss does not use, or detaches, cost the backward pass nothing.

    Args:
        hidden_Th: [T, hidden] what the output layer multiplies, whole on every rank. Its gradient is this rank's
            share: the sum over the ranks is for whoever made it.
        weight_Vh: [V_padded / TP, hidden] this rank's rows of the output layer.
        targets_N: [N] token ids, global.
        rows_N: [N] row of ``hidden_Th`` that predicts each target (its predecessor).
        vocab_size: logits at or beyond it are padding and take no part.
        temperature: divides the logits.
        chunk_tokens: as much memory is taken as for the float32 logits of so many tokens.
        keep_logits: keep the logits for the backward pass instead of computing them once more.
        group: the tensor-parallel group that shares the vocabulary.
        kept: the set of tokens that each target was drawn from, itself among them, over which the distribution is
            renormalised; None for the whole vocabulary.

    Returns:
        logprobs [N] and entropies [N] in nats; float32.
    """
    first = dist.get_rank(group) * len(weight_Vh)
    valid = max(0, min(len(weight_Vh), vocab_size - first))
    if kept is None:
        rows_U, row_of_N = torch.unique(rows_N, return_inverse=True)
    else:  # a row that several targets read has a set for each of them
        rows_U, row_of_N = rows_N, torch.arange(len(rows_N), device=rows_N.device)
        kept = replace(kept, ids=kept.ids - first)
    logprobs_N, entropies_U = _TreeLogprobs.apply(
        hidden_Th.index_select(0, rows_U),
        weight_Vh,
        targets_N - first,
        row_of_N,
        valid,
        temperature,
        chunk_tokens,
        keep_logits and torch.is_grad_enabled(),
        group,
        kept,
    )
    return logprobs_N, entropies_U[row_of_N]


class _TreeLogprobs(torch.autograd.Function):
    """With z = logits / temperature and p = softmax(z), entropy H = -sum_j p_j log p_j::

    d logprob / d z_j = [j is the target] - p_j
    d H / d z_j       = -p_j (log p_j + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        local_targets: Tensor,
        row_of: Tensor,
        valid: int,
        temperature: float,
        chunk_tokens: int,
        keep_logits: bool,
        group: dist.ProcessGroup,
        kept: KeptTokens | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        peak = torch.full((len(hidden),), torch.finfo(dtype).min, dtype=dtype, device=hidden.device)
        mass, weighted = torch.zeros_like(peak), torch.zeros_like(peak)
        chosen = torch.zeros(len(row_of), dtype=dtype, device=hidden.device)
        logits: list[Tensor] = []
        # Two chunks are alive: the exponents and what they are the exponents of.
        for columns in _chunks(valid, len(weight) * chunk_tokens, 2 * len(hidden)):
            z = _logits(hidden, weight, columns, dtype, kept)
            if keep_logits:
                logits.append(z.clone())
            inside, column = _place(local_targets, columns)
            chosen += torch.where(inside, z[row_of, column], 0)
            higher = torch.maximum(peak, z.amax(dim=1))
            mass, weighted = _rescaled(mass, weighted, (peak - higher) / temperature)
            peak = higher
            if kept is not None:
                _raise_to_floor(z, peak, temperature)
            of_chunk = _sums(z, peak, temperature)
            del z  # before the next chunk is made
            mass, weighted = mass + of_chunk[0], weighted + of_chunk[1]
        highest = peak.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        mass, weighted = _rescaled(mass, weighted, (peak - highest) / temperature)
        owned = (local_targets >= 0) & (local_targets < valid)
        chosen = torch.where(owned, (chosen - highest[row_of]) / temperature, 0)
        sums = torch.cat((chosen, mass, weighted))  # one reduction for all three
        dist.all_reduce(sums, group=group)
        chosen, mass, weighted = sums.split((len(chosen), len(mass), len(weighted)))
        entropies = mass.log() - weighted / mass
        ctx.save_for_backward(hidden, weight, local_targets, row_of, highest, mass, entropies)
        ctx.logits, ctx.kept = logits, kept
        ctx.valid, ctx.temperature, ctx.chunk_tokens = valid, temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return chosen - mass.log()[row_of], entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, local_targets, row_of, peak, mass, entropies = ctx.saved_tensors
        of_logprobs, of_entropies = grad_outputs
        dtype, temperature = peak.dtype, ctx.temperature
        if of_logprobs is None:
            of_logprobs = torch.zeros(len(row_of), dtype=dtype, device=hidden.device)
        of_logprobs = of_logprobs / temperature
        # index_put adds in one order on a GPU, too; index_add does not.
        of_rows = torch.zeros_like(peak).index_put_((row_of,), of_logprobs, accumulate=True)
        grad_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        grad_weight = torch.empty_like(weight)
        grad_weight[ctx.valid :] = 0
        # Kept logits come in the chunks of the forward pass; else one chunk is alive, two with entropies' gradients.
        logits, ctx.logits = ctx.logits, []
        alive = 2 if logits or of_entropies is not None else 1
        for columns in _chunks(ctx.valid, len(weight) * ctx.chunk_tokens, alive * len(hidden)):
            grad = logits.pop(0) if logits else _logits(hidden, weight, columns, dtype, ctx.kept)
            if ctx.kept is not None:
                _raise_to_floor(grad, peak, temperature)
            if of_entropies is None:
                grad = _scaled_exponentials(grad, peak, -of_rows / mass, temperature)
            else:
                _centre(grad, peak, temperature)
                minus_p = grad.exp().mul_((-1 / mass)[:, None])
                grad.add_((entropies - mass.log())[:, None])  # log p + H
                grad.mul_((of_entropies / temperature)[:, None]).add_(of_rows[:, None]).mul_(minus_p)
                del minus_p
            inside, column = _place(local_targets, columns)
            grad.index_put_((row_of, column), torch.where(inside, of_logprobs, 0), accumulate=True)
            rounded = grad.to(hidden.dtype)
            del grad
            grad_hidden += _multiply(rounded, weight[columns], dtype)
            torch.mm(rounded.t(), hidden, out=grad_weight[columns])
            del rounded
        return grad_hidden.to(hidden.dtype), grad_weight, *(None,) * 8


def _logits(hidden: Tensor, weight: Tensor, columns: slice, dtype: torch.dtype, kept: KeptTokens | None) -> Tensor:
    """Logits of some columns, far below all others where the distribution was cut off."""
    z = _multiply(hidden, weight[columns].t(), dtype)
    return z if kept is None else z.masked_fill_(kept.outside((len(z), z.shape[1]), columns.start), _CUT_OFF)


def _raise_to_floor(logits: Tensor, peak: Tensor, temperature: float) -> None:
    """Logits so far below the peak that they count for nothing, no further, in place."""
    torch.maximum(logits, (peak - _FLOOR * temperature)[:, None], out=logits)


def _chunks(columns: int, numbers: int, rows: int) -> Iterator[slice]:
    """Columns in chunks of at most ``numbers`` entries over ``rows`` rows, at least a tile wide."""
    width = max(1, numbers // max(1, rows) // _COLUMNS) * _COLUMNS
    return (slice(start, min(start + width, columns)) for start in range(0, columns, width))


def _multiply(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix product in a wider type than its factors."""
    if left.dtype is dtype:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)


def _sums(z: Tensor, peak: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """With y = (z - peak) / temperature: sum exp(y) and sum y exp(y) of each row. ``z`` is overwritten."""
    if z.is_cuda:
        sums: tuple[Tensor, Tensor] = _compiled(_sums_at_once)(z, peak, temperature)
        return sums
    _centre(z, peak, temperature)
    exponentials = z.exp()
    return exponentials.sum(dim=1), torch.bmm(exponentials[:, None], z[:, :, None]).flatten()


def _sums_at_once(z: Tensor, peak: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    y = (z - peak[:, None]) / temperature
    exponentials = y.exp()
    return exponentials.sum(dim=1), (exponentials * y).sum(dim=1)


def _scaled_exponentials(z: Tensor, peak: Tensor, scale: Tensor, temperature: float) -> Tensor:
    """exp((z - peak) / temperature) * scale. ``z`` is overwritten."""
    if z.is_cuda:
        result: Tensor = _compiled(_scaled_exponentials_at_once)(z, peak, scale, temperature)
        return result
    _centre(z, peak, temperature)
    return z.exp_().mul_(scale[:, None])


def _scaled_exponentials_at_once(z: Tensor, peak: Tensor, scale: Tensor, temperature: float) -> Tensor:
    return z.copy_(((z - peak[:, None]) / temperature).exp() * scale[:, None])


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a GPU a chunk is read once, not once for every operation."""
    return torch.compile(function, dynamic=True)


def _centre(logits: Tensor, peak: Tensor, temperature: float) -> None:
    """(logits - peak) / temperature, in place."""
    # The peak goes first: what is left of large logits is small, and divided without loss.
    logits.sub_(peak[:, None])
    if temperature != 1:
        logits.div_(temperature)


def _place(local_targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether each target is in the chunk, and in which of its columns (any, if it is not)."""
    inside = (local_targets >= columns.start) & (local_targets < columns.stop)
    return inside, torch.where(inside, local_targets - columns.start, 0)


def _rescaled(mass: Tensor, weighted: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """sum exp(z) and sum z exp(z) when every z moves by ``shift`` <= 0."""
    # Where nothing has been added yet the shift may be -inf, and 0 times -inf would be nan.
    shift = shift.clamp(min=torch.finfo(shift.dtype).min)
    scale = shift.exp()
    return mass * scale, (weighted + mass * shift) * scale
