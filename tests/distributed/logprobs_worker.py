"""Ranks of test_logprobs.py: errors of log-probs, entropies and gradients against float64 on the full vocabulary."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_ibtpo.megatron.logprobs import tree_logprobs
from nemo_ibtpo.megatron.model import padded_vocab_size

VOCAB, ROWS, TARGETS = 61, 17, 40
KINDS = ["ordinary", "extreme", "bf16"]
# How much the loss has of log-probabilities and of entropies.
LOSSES = {"logprobs": (1.0, 0.0), "entropies": (0.0, 1.0), "both": (0.7, 2.0)}


def make_logits(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(ROWS, VOCAB, generator=generator)
    if kind == "extreme":
        logits = logits * 500
        logits[0, 5] = 1e4
        logits[1] = -1e4
    return logits.bfloat16() if kind == "bf16" else logits


def errors(
    kind: str, size: int, chunk: int, temperature: float, loss: str, group: dist.ProcessGroup
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(0, VOCAB, (TARGETS,), generator=generator)
    rows = torch.randint(0, ROWS, (TARGETS,), generator=generator)  # rows repeat, as at branches
    upstream = torch.randn(2, TARGETS, generator=generator)
    of_logprobs, of_entropies = LOSSES[loss]

    def total(logprobs: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
        terms = []
        if of_logprobs:
            terms.append(of_logprobs * (logprobs * upstream[0].to(logprobs.dtype)).sum())
        if of_entropies:
            terms.append(of_entropies * (entropies * upstream[1].to(logprobs.dtype)).sum())
        return torch.stack(terms).sum()

    full = make_logits(kind)
    exact = full.double().requires_grad_()
    log_softmax = torch.log_softmax(exact[rows] / temperature, dim=-1)
    expected = log_softmax[torch.arange(TARGETS), targets]
    expected_entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    total(expected, expected_entropy).backward()
    assert exact.grad is not None

    padded = padded_vocab_size(VOCAB, size)
    # Padding columns hold what would win every softmax if it took part.
    everything = torch.cat((full, torch.full((ROWS, padded - VOCAB), 1e5, dtype=full.dtype)), dim=1)
    rank, width = dist.get_rank(group), padded // size
    local = everything[:, rank * width : (rank + 1) * width].clone().requires_grad_()
    logprobs, entropies = tree_logprobs(
        local, targets, rows, vocab_size=VOCAB, temperature=temperature, chunk_tokens=chunk, group=group
    )
    total(logprobs, entropies).backward()
    assert local.grad is not None
    gradient = [torch.empty_like(local.grad) for _ in range(size)]
    dist.all_gather(gradient, local.grad, group=group)
    whole = torch.cat(gradient, dim=1).double()
    scale = expected.detach().abs().clamp(min=1.0)
    return {
        "logprob": float(((logprobs.detach().double() - expected.detach()).abs() / scale).max()),
        "entropy": float((entropies.detach().double() - expected_entropy.detach()).abs().max()),
        "gradient": float((whole[:, :VOCAB] - exact.grad).norm() / exact.grad.norm()),
        "padding_gradient": float(whole[:, VOCAB:].abs().sum()),
        "float32": float(logprobs.dtype is torch.float32 and entropies.dtype is torch.float32),
    }


def main() -> None:
    dist.init_process_group("gloo")
    groups = {1: [[r] for r in range(4)], 2: [[0, 1], [2, 3]], 4: [[0, 1, 2, 3]]}
    results = {}
    for size, members in groups.items():
        mine, _ = dist.new_subgroups_by_enumeration(members)
        for kind, loss, chunk, temperature in itertools.product(KINDS, LOSSES, (1, 7, 1000), (0.6, 1.0)):
            name = f"{kind}-{loss}-tp{size}-chunk{chunk}-t{temperature}"
            results[name] = errors(kind, size, chunk, temperature, loss, mine)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
