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


def make_logits(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(ROWS, VOCAB, generator=generator)
    if kind == "extreme":
        logits = logits * 500
        logits[0, 5] = 1e4
        logits[1] = -1e4
    return logits.bfloat16() if kind == "bf16" else logits


def errors(kind: str, size: int, chunk: int, temperature: float, group: dist.ProcessGroup) -> dict[str, float]:
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(0, VOCAB, (TARGETS,), generator=generator)
    rows = torch.randint(0, ROWS, (TARGETS,), generator=generator)  # rows repeat, as at branches
    upstream = torch.randn(TARGETS, generator=generator)

    full = make_logits(kind)
    exact = full.double().requires_grad_()
    log_softmax = torch.log_softmax(exact[rows] / temperature, dim=-1)
    expected = log_softmax[torch.arange(TARGETS), targets]
    expected_entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    (expected * upstream.double()).sum().backward()
    assert exact.grad is not None

    padded = padded_vocab_size(VOCAB, size)
    # Padding columns hold what would win every softmax if it took part.
    everything = torch.cat((full, torch.full((ROWS, padded - VOCAB), 1e5, dtype=full.dtype)), dim=1)
    rank, width = dist.get_rank(group), padded // size
    local = everything[:, rank * width : (rank + 1) * width].clone().requires_grad_()
    logprobs, entropies = tree_logprobs(
        local, targets, rows, vocab_size=VOCAB, temperature=temperature, chunk_tokens=chunk, group=group
    )
    (logprobs * upstream).sum().backward()
    assert local.grad is not None
    gradient = [torch.empty_like(local.grad) for _ in range(size)]
    dist.all_gather(gradient, local.grad, group=group)
    whole = torch.cat(gradient, dim=1).double()
    scale = expected.detach().abs().clamp(min=1.0)
    return {
        "logprob": float(((logprobs.detach().double() - expected.detach()).abs() / scale).max()),
        "entropy": float((entropies.double() - expected_entropy.detach()).abs().max()),
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
        for kind, chunk, temperature in itertools.product(KINDS, (1, 7, 1000), (0.6, 1.0)):
            results[f"{kind}-tp{size}-chunk{chunk}-t{temperature}"] = errors(kind, size, chunk, temperature, mine)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
