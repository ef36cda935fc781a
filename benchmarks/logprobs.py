"""Log-probabilities straight from hidden states against held logits: memory and time, forward and backward.

Three ways from random hidden states and an output layer to log-probabilities, entropies and both gradients:

- ``fused``: ``tree_logprobs``, which holds one chunk of the logits;
- ``truncated``: the same renormalised over sets of 20 kept tokens, as top-k sampling leaves them;
- ``held``: the output layer makes all logits in its own precision, then float32 log-softmax a chunk of tokens at a
  time, computed once more in the backward pass; what trainers do that take logits from the model.

    python benchmarks/logprobs.py

One JSON line a vocabulary: how many times more memory and time ``held`` takes than ``fused``, and ``truncated`` than
``fused``; and the largest difference between the log-probabilities of ``fused`` and ``held``. The gradients are part
of the memory.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from measure import MIB, describe, in_fresh_process, in_turn, peak_memory, ratio, report
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from workloads import defaults

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.kept_tokens import KeptTokens, kept_tokens
from nemo_ibtpo.megatron.logprobs import tree_logprobs

WAYS = ("fused", "truncated", "held")
_KEPT = 20


@functools.cache
def context() -> parallel.ParallelContext:
    """Process groups of one process."""
    return parallel.initialize(ActorConfig(**defaults("actor")), seed=0)


@dataclass(frozen=True)
class Case:
    """What is measured; ``chunk`` is the number of tokens whose float32 logits are alive at once."""

    tokens: int
    hidden: int
    vocab_size: int
    chunk: int


def log_softmax(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies by way of all log-probabilities."""
    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    with torch.no_grad():
        entropies_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], entropies_T


class Pass:
    """Forward and backward passes from random hidden states and a random output layer."""

    def __init__(self, case: Case) -> None:
        self.device, self.case = context().device, case
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        generator = torch.Generator(self.device).manual_seed(0)

        def normal(rows: int, scale: float) -> Tensor:
            shape = (rows, case.hidden)
            return torch.randn(shape, generator=generator, device=self.device).mul_(scale).to(dtype).requires_grad_()

        self.hidden, self.weight = normal(case.tokens, 1.0), normal(case.vocab_size, 3 * case.hidden**-0.5)
        self.targets = torch.randint(case.vocab_size, (case.tokens,), generator=generator, device=self.device)

    def run(self, way: str) -> Tensor:
        """One pass; the log-probabilities."""
        self.hidden.grad = self.weight.grad = None
        with context().scope():
            logprobs, _ = getattr(self, way)()
            logprobs.sum().backward()
        return logprobs.detach()

    def fused(self) -> tuple[Tensor, Tensor]:
        return self._from_hidden(None)

    def truncated(self) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(0)
        others = rng.integers(self.case.vocab_size, size=(self.case.tokens, _KEPT - 1))
        sets = np.concatenate((self.targets.cpu().numpy()[:, None], others), axis=1).astype(np.int32)
        return self._from_hidden(kept_tokens([own.tobytes() for own in sets], self.device))

    def _from_hidden(self, kept: KeptTokens | None) -> tuple[Tensor, Tensor]:
        group = dist.group.WORLD
        assert group is not None, "context() makes it"
        return tree_logprobs(
            self.hidden,
            self.weight,
            self.targets,
            torch.arange(self.case.tokens, device=self.device),
            vocab_size=self.case.vocab_size,
            temperature=1.0,
            chunk_tokens=self.case.chunk,
            keep_logits=False,
            group=group,
            kept=kept,
        )

    def held(self) -> tuple[Tensor, Tensor]:
        logits = self.hidden @ self.weight.t()
        chunks = zip(logits.split(self.case.chunk), self.targets.split(self.case.chunk), strict=True)
        parts = [checkpoint(log_softmax, rows, targets, use_reentrant=False) for rows, targets in chunks]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)


def memory(case: Case) -> dict[str, int]:
    """Bytes that a pass of each way needs beyond hidden states and weight."""
    Pass(Case(2, 4, 16, 1)).run("fused")  # what the first call of anything sets up is not counted
    one, bytes_of = Pass(case), {}
    for way in WAYS:
        one.hidden.grad = one.weight.grad = None
        with peak_memory(one.device) as grown:
            one.run(way)
        bytes_of[way] = grown()
    return bytes_of


def measure(case: Case, repetitions: int) -> None:
    """Measure all ways and print what was found."""
    peaks = in_fresh_process(memory, case)
    one = Pass(case)
    measured = in_turn([partial(one.run, way) for way in WAYS], repetitions, one.device)
    times = dict(zip(WAYS, measured, strict=True))
    with torch.no_grad(), context().scope():
        error = float((one.fused()[0] - one.held()[0]).abs().max())
    device = describe(one.device)
    print(f"{case.tokens} tokens, hidden size {case.hidden}, vocabulary {case.vocab_size}, {device}")
    for way in WAYS:
        print(f"  {way:>9}: memory {peaks[way] / MIB:6.0f} MiB, time {times[way]}")
    report(
        tokens=case.tokens,
        hidden=case.hidden,
        vocab_size=case.vocab_size,
        chunk_tokens=case.chunk,
        memory_ratio=peaks["held"] / peaks["fused"],
        time_ratio=ratio(times["held"].wall, times["fused"].wall),
        truncated_memory_ratio=peaks["truncated"] / peaks["fused"],
        truncated_time_ratio=ratio(times["truncated"].wall, times["fused"].wall),
        fused_s=float(np.median(times["fused"].wall)),
        max_abs_err=error,
        device=device,
        repetitions=repetitions,
    )


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384 if on_gpu else 2048)
    parser.add_argument("--hidden", type=int, default=1536 if on_gpu else 896)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32000, 151936])
    parser.add_argument("--chunk", type=int, default=int(defaults("actor")["logprob_chunk_tokens"]) if on_gpu else 64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    cases = [Case(options.tokens, options.hidden, size, options.chunk) for size in options.vocab_sizes]
    for case in [Case(512, 64, 8000, 64)] if options.tiny else cases:
        measure(case, options.repetitions)
    parallel.shutdown()


if __name__ == "__main__":
    main()
