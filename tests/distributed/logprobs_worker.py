"""Ranks of test_logprobs.py: errors of log-probs, entropies and gradients against float64 on the full vocabulary."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_ibtpo.megatron.kept_tokens import kept_tokens
from nemo_ibtpo.megatron.logprobs import tree_logprobs
from nemo_ibtpo.megatron.model import padded_vocab_size

VOCAB, HIDDEN, ROWS, TARGETS = 611, 8, 17, 40
KINDS = ["ordinary", "extreme", "bf16"]
# How much the loss has of log-probabilities and of entropies.
LOSSES = {"logprobs": (1.0, 0.0), "entropies": (0.0, 1.0), "both": (0.7, 2.0)}


def sixteenths(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Normal numbers of few bits: their products are exact in bf16's factors and float32's sums."""
    return torch.randn(*shape, generator=generator).mul_(16).round_().clamp_(-64, 64).div_(16)


def make_factors(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and the output layer's weight."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = sixteenths(generator, ROWS, HIDDEN), sixteenths(generator, VOCAB, HIDDEN)
    if kind == "extreme":
        hidden *= 256  # logits of some thousands
    return (hidden.bfloat16(), weight.bfloat16()) if kind == "bf16" else (hidden, weight)


def errors(
    kind: str,
    chunk: int,
    temperature: float,
    loss: str,
    keep_logits: bool,
    group: dist.ProcessGroup,
    device: str = "cpu",
    *,
    truncated: bool = False,
) -> dict[str, float]:
    """Largest errors of one case; the exact values are computed on the CPU."""
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(0, VOCAB, (TARGETS,), generator=generator)
    rows = torch.randint(0, ROWS - 1, (TARGETS,), generator=generator)  # rows repeat, as at branches; one is not read
    upstream = torch.randn(2, TARGETS, generator=generator)
    of_logprobs, of_entropies = LOSSES[loss]

    def total(logprobs: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
        terms = []
        if of_logprobs:
            terms.append(of_logprobs * (logprobs * upstream[0].to(logprobs.dtype)).sum())
        if of_entropies:
            terms.append(of_entropies * (entropies * upstream[1].to(logprobs.dtype)).sum())
        return torch.stack(terms).sum()

    hidden, weight = make_factors(kind)
    exact_hidden, exact_weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = (exact_hidden @ exact_weight.t())[rows] / temperature
    sets = None
    if truncated:
        # Sets of 1, 2, ... tokens with the target among them; no top-p set of these logits, for the policy has moved.
        shuffled = (
            torch.rand(TARGETS, VOCAB, generator=generator)
            .scatter_(1, targets[:, None], 2.0)
            .argsort(dim=1, descending=True)
        )
        kept = torch.zeros(TARGETS, VOCAB, dtype=torch.bool)
        for target, order in enumerate(shuffled):
            kept[target, order[: 1 + target**2 % VOCAB]] = True
        logits = logits.masked_fill(~kept, -torch.inf)
        sets = kept_tokens(
            [own.nonzero()[:, 0].numpy().astype("int32").tobytes() for own in kept], torch.device(device)
        )
    log_softmax = torch.log_softmax(logits, dim=-1)
    expected = log_softmax[torch.arange(TARGETS), targets]
    expected_entropy = -(log_softmax.exp() * log_softmax.clamp(min=-1e30)).sum(-1)
    total(expected, expected_entropy).backward()
    assert exact_hidden.grad is not None and exact_weight.grad is not None

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    padded = padded_vocab_size(VOCAB, size)
    # Padding rows hold what would win many a softmax if it took part.
    everything = torch.cat((weight, torch.full((padded - VOCAB, HIDDEN), 1e4, dtype=weight.dtype)))
    local_hidden = hidden.to(device, copy=True).requires_grad_()
    local_weight = everything.chunk(size)[rank].to(device, copy=True).requires_grad_()
    logprobs, entropies = tree_logprobs(
        local_hidden,
        local_weight,
        targets.to(device),
        rows.to(device),
        vocab_size=VOCAB,
        temperature=temperature,
        chunk_tokens=chunk,
        keep_logits=keep_logits,
        group=group,
        kept=sets,
    )
    logprobs, entropies = logprobs.cpu(), entropies.cpu()
    total(logprobs, entropies).backward()
    assert local_hidden.grad is not None and local_weight.grad is not None
    of_hidden = local_hidden.grad.double()
    dist.all_reduce(of_hidden, group=group)
    of_hidden = of_hidden.cpu()
    shards = [torch.empty_like(local_weight.grad) for _ in range(size)]
    dist.all_gather(shards, local_weight.grad, group=group)
    of_weight = torch.cat(shards).cpu().double()
    scale = expected.detach().abs().clamp(min=1.0)
    return {
        "logprob": float(((logprobs.detach().double() - expected.detach()).abs() / scale).max()),
        "entropy": float((entropies.detach().double() - expected_entropy.detach()).abs().max()),
        "gradient": max(
            float((of_hidden - exact_hidden.grad).norm() / exact_hidden.grad.norm()),
            float((of_weight[:VOCAB] - exact_weight.grad).norm() / exact_weight.grad.norm()),
        ),
        "padding_gradient": float(of_weight[VOCAB:].abs().sum()),
        "float32": float(logprobs.dtype is torch.float32 and entropies.dtype is torch.float32),
    }


def main() -> None:
    dist.init_process_group("gloo")
    groups = {1: [[r] for r in range(4)], 2: [[0, 1], [2, 3]], 4: [[0, 1, 2, 3]]}
    results = {}
    for size, members in groups.items():
        mine, _ = dist.new_subgroups_by_enumeration(members)
        for kind, loss, chunk, temperature, keep in itertools.product(
            KINDS, LOSSES, (1, 7, 1000), (0.6, 1.0), (False, True)
        ):
            name = f"{kind}-{loss}-tp{size}-chunk{chunk}-t{temperature}-{'kept' if keep else 'fused'}"
            results[name] = errors(kind, chunk, temperature, loss, keep, mine)
        for kind, loss, chunk, keep in itertools.product(KINDS, LOSSES, (1, 7), (False, True)):
            name = f"truncated-{kind}-{loss}-tp{size}-chunk{chunk}-{'kept' if keep else 'fused'}"
            results[name] = errors(kind, chunk, 0.6, loss, keep, mine, truncated=True)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
