"""Log-probabilities of tree tokens in chunks against the naive way: memory and time, forward and backward.

The naive way makes float32 log-probabilities of every row of the logits and takes the entropy from them. The chunked
one is ``tree_logprobs``. Both start from the same bf16 logits, which belong to the
model and are not counted; their gradient, which either has to make, is.

    python benchmarks/logprobs.py

One JSON line a chunk size, the last for the largest vocabulary and the default chunk: how many times more memory and
time the naive way takes, and the largest difference between the log-probabilities of the two ways.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from measure import MIB, describe, in_fresh_process, in_turn, peak_memory, ratio, report
from torch import Tensor
from workloads import defaults

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.logprobs import tree_logprobs

DEFAULT_CHUNK = int(defaults("actor")["logprob_chunk_tokens"])
Logprobs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@functools.cache
def context() -> parallel.ParallelContext:
    """Process groups of one process."""
    return parallel.initialize(ActorConfig(**defaults("actor")), seed=0)


def naive(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies by way of all log-probabilities."""
    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    with torch.no_grad():
        entropies_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], entropies_T


def chunked(logits_TV: Tensor, targets_T: Tensor, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """The same by ``tree_logprobs``."""
    group = dist.group.WORLD
    assert group is not None, "context() makes it"
    return tree_logprobs(
        logits_TV,
        targets_T,
        torch.arange(len(logits_TV), device=logits_TV.device),
        vocab_size=logits_TV.shape[1],
        temperature=1.0,
        chunk_tokens=chunk_tokens,
        group=group,
    )


def function_of(chunk: int | None) -> Logprobs:
    """The function of a chunk size, None for the naive way."""
    return naive if chunk is None else partial(chunked, chunk_tokens=chunk)


class Pass:
    """Forward and backward passes from random logits [tokens, vocab_size] to their gradient."""

    def __init__(self, tokens: int, vocab_size: int) -> None:
        self.device = context().device
        generator = torch.Generator(self.device).manual_seed(0)
        logits = torch.randn(tokens, vocab_size, generator=generator, device=self.device, dtype=torch.bfloat16)
        self.logits = logits.mul_(3).requires_grad_()
        self.targets = torch.randint(vocab_size, (tokens,), generator=generator, device=self.device)

    def run(self, function: Logprobs) -> Tensor:
        """One pass; the log-probabilities."""
        self.logits.grad = None
        with context().scope():
            logprobs, _ = function(self.logits, self.targets)
            logprobs.sum().backward()
        return logprobs.detach()


def memory(tokens: int, vocab_size: int, ways: list[int | None]) -> dict[int | None, int]:
    """Bytes that a pass needs beyond the logits, by chunk size."""
    one, bytes_of = Pass(tokens, vocab_size), {}
    for chunk in ways:
        Pass(2, 16).run(function_of(chunk))  # what the first call of anything sets up is not counted
        one.logits.grad = None
        with peak_memory(one.device) as grown:
            one.run(function_of(chunk))
        bytes_of[chunk] = grown()
    return bytes_of


def measure(tokens: int, vocab_size: int, chunks: list[int], repetitions: int) -> None:
    """Measure the naive way and all chunk sizes at one vocabulary and print what was found."""
    ways = {chunk: function_of(chunk) for chunk in (None, *chunks)}
    peaks = in_fresh_process(memory, tokens, vocab_size, list(ways))
    one = Pass(tokens, vocab_size)
    measured = in_turn([partial(one.run, function) for function in ways.values()], repetitions, one.device)
    times = dict(zip(ways, measured, strict=True))
    expected = one.run(naive)
    print(f"{tokens} tokens, vocabulary {vocab_size}, {describe(one.device)}")
    for chunk in ways:
        name = "naive" if chunk is None else f"{chunk} at a time"
        print(f"  {name:>14}: memory {peaks[chunk] / MIB:6.0f} MiB, time {times[chunk]}")
    for chunk in chunks:
        report(
            tokens=tokens,
            vocab_size=vocab_size,
            chunk_tokens=chunk,
            memory_ratio=peaks[None] / peaks[chunk],
            time_ratio=ratio(times[None].wall, times[chunk].wall),
            max_abs_err=float((one.run(ways[chunk]) - expected).abs().max()),
            device=describe(one.device),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384 if torch.cuda.is_available() else 2048)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32000, 151936])
    parser.add_argument("--chunks", type=int, nargs="+", default=[128, 512, DEFAULT_CHUNK])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    tokens, vocab_sizes = (512, [8000]) if options.tiny else (options.tokens, options.vocab_sizes)
    for vocab_size in vocab_sizes:
        measure(tokens, vocab_size, options.chunks, options.repetitions)
    parallel.shutdown()


if __name__ == "__main__":
    main()
