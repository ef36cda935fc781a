"""A training step on packed trees against the same step on their trajectories as separate sequences.

Both sides are ``MegatronActor.train_step`` with the same weights, loss, credit and micro-batch budget, on one
process; the learning rate is next to nothing, so that every step sees the same weights. Ratios are duplicated over
packed: how many times more a step costs when every trajectory is a sequence of its own. ``max_grad_rel_err`` is the
largest relative difference over all parameters between the two gradients.

    python benchmarks/tree_training.py --shape paper

    OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 benchmarks/tree_training.py     # the sequence dealt over two ranks

Under torchrun all ranks are context-parallel; memory is not measured then. The last line is JSON; with ``--shape
all`` there is one for each shape, the paper's last. On a GPU the model is a random one of Qwen2.5-1.5B's shape in
bf16 and the model FLOP utilisation is reported too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from measure import MIB, describe, in_fresh_process, in_turn, peak_memory, ratio, report
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config
from workloads import IB_SCORE, LOSS, METHOD, SHAPES, Shape, defaults, grow_tree, paths

from nemo_ibtpo.config.schema import ActorConfig, OptimizerConfig
from nemo_ibtpo.losses import ClippedLoss
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import Architecture, architecture_from_config
from nemo_ibtpo.methods import make_method
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.tree.microbatches import assemble, schedule
from nemo_ibtpo.tree.packing import PackedBatch, pack_tree, take

SIDES = ("packed", "duplicated")
RANKS = int(os.environ.get("WORLD_SIZE", "1"))  # that share a sequence
MODELS = {
    "tiny": Qwen2Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "cpu": Qwen2Config(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "1.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
# Of the shape's trees the one of this seed shares about as much as the average one does; for the paper's shape its
# responses are 1.59 times the tokens when duplicated, which is what the paper reports (12,035 against 7,592).
SEED = 2
# Dense bf16 matrix throughput that the makers state, FLOP/s, by a word in the device's name.
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}


@dataclass(frozen=True)
class Case:
    """What is measured: plain values, which travel to a fresh process.

    Attributes:
        model: key of ``MODELS``.
        trees: trees of one step.
        max_tokens: budget of a micro-batch, the same for both sides.
    """

    shape: Shape
    model: str
    trees: int
    max_tokens: int


class Step:
    """One optimizer step of an actor of its own, ready to run on either side."""

    def __init__(self, case: Case) -> None:
        actor_config = ActorConfig(
            **defaults("actor")
            | {
                "use_distributed_optimizer": False,
                "max_tokens_per_microbatch": case.max_tokens,
                "context_parallel_size": RANKS,
            }
        )
        optimizer = replace(OptimizerConfig(**defaults("optimizer")), lr=1e-30, weight_decay=0.0)
        context = parallel.initialize(actor_config, seed=0)
        self.device = context.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(MODELS[case.model], dtype=self.dtype)
        self.architecture = architecture_from_config(model.config)
        self.actor = MegatronActor(
            self.architecture,
            model.state_dict(),
            actor=actor_config,
            optimizer=optimizer,
            total_updates=1,
            dtype=self.dtype,
            temperature=1.0,
            keep_reference=False,
            context=context,
        )
        rng = np.random.default_rng(SEED)
        pairs = [self._packed_tree(case.shape, rng, prompt_id=str(i)) for i in range(case.trees)]
        self.denominator = sum(share for _, share in pairs)
        trees = [tree for tree, _ in pairs]
        chains = [chain for tree in trees for chain in duplicated(tree)]
        self.tokens = {"packed": sum(map(len, trees)), "duplicated": sum(map(len, chains))}
        self.attended = {"packed": attended_pairs(trees), "duplicated": attended_pairs(chains)}
        self.batches = {}
        for side, batches in zip(SIDES, (trees, chains), strict=True):
            plan = schedule(
                batches,
                max_tokens=case.max_tokens,
                num_ranks=1,
                multiple_of=self.actor.microbatch_multiple,
                attention_weight=0.0,
            )
            self.batches[side] = [assemble(pieces, dict(enumerate(batches))) for pieces in plan.ranks[0]]
        self.actor.prepare_for_training()

    def _packed_tree(self, shape: Shape, rng: np.random.Generator, prompt_id: str) -> tuple[PackedBatch, float]:
        vocab_size = self.architecture.vocab_size
        tree = grow_tree(shape, shape.strategy("random"), rng, prompt_id=prompt_id, vocab_size=vocab_size)
        (advantages,) = make_method(METHOD).of_update([tree], IB_SCORE)
        credit = credit_nodes(tree, advantages, LOSS.normalization, LOSS.token_weight)
        batch = pack_tree(tree, credit)
        (own,) = self.actor.logprobs([batch])
        # Other policies, far enough away that some ratios are clipped.
        old, reference = (own + rng.normal(0, 0.1, len(own)).astype(np.float32) for _ in range(2))
        return replace(batch, old_logprobs=old, reference_logprobs=reference), credit.denominator

    def run(self, side: str) -> None:
        """One step on ``packed`` trees or on ``duplicated`` trajectories."""
        self.actor.train_step(self.batches[side], ClippedLoss(LOSS), self.denominator)

    def gradients(self, side: str) -> dict[str, Tensor]:
        """Gradient of every parameter after such a step."""
        self.run(side)
        return {name: gradient.to("cpu", copy=True) for name, gradient in self.actor.named_gradients()}


def duplicated(batch: PackedBatch) -> list[PackedBatch]:
    """The trajectories of a tree as sequences of their own, each with its share of the tree's credit."""
    chains = []
    for path in paths(batch):
        chain = take(batch, path, path)
        # Trajectories that share the token; prompt tokens, which are in no loss, have 0.
        trajectories = np.maximum(chain.weight, 1)
        shares = {name: getattr(chain, name) / trajectories for name in ("weight", "positive", "negative")}
        chains.append(replace(chain, **shares))
    return chains


def attended_pairs(batches: Sequence[PackedBatch]) -> int:
    """Pairs of tokens of which one attends to the other."""
    return sum(int((batch.depth + 1).sum()) for batch in batches)


def model_flops(architecture: Architecture, tokens: int, attended: int) -> float:
    """Floating-point operations of a forward and backward pass, nothing recomputed.

    The backward pass takes twice as many as the forward pass.
    """
    return 3 * (architecture.flops_per_token * tokens + architecture.flops_per_pair * attended)


def step_memory(case: Case) -> dict[str, int]:
    """Bytes that a step of each side needs beyond the weights, the gradients and the optimizer's state."""
    step, bytes_of = Step(case), {}
    step.batches["one token"] = [take(step.batches["packed"][0], np.arange(1), np.arange(1))]
    step.run("one token")  # makes the optimizer's state
    for side in SIDES:
        with peak_memory(step.device) as grown:
            step.run(side)
        bytes_of[side] = grown()
    return bytes_of


def max_relative_error(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative error of a parameter's gradient."""
    return max(float((ours[name] - g).norm() / g.norm()) for name, g in expected.items())


def measure(name: str, case: Case, repetitions: int) -> None:
    """Measure one shape and print what was found."""
    memory = in_fresh_process(step_memory, case) if RANKS == 1 else None
    step = Step(case)
    error = max_relative_error(step.gradients("packed"), step.gradients("duplicated"))
    packed, duplicate = in_turn([partial(step.run, side) for side in SIDES], repetitions, step.device)
    times = {"packed": packed, "duplicated": duplicate}
    device = describe(step.device)
    if dist.get_rank() > 0:
        parallel.shutdown()
        return
    print(
        f"{name}: {case.trees} tree(s) of (B0, L, K, B) = {case.shape.growth}, model {case.model}, "
        f"{RANKS} rank(s), {device}"
    )
    utilisation = {}
    for side in SIDES:
        line = f"  {side:10} {step.tokens[side]:6} tokens in {len(step.batches[side])} micro-batch(es), "
        line += f"step {times[side]}" + (f", memory {memory[side] / MIB:.0f} MiB" if memory else "")
        peak = next((flops for word, flops in PEAK_FLOPS.items() if word in device), None)
        if peak is not None:
            flops = model_flops(step.architecture, step.tokens[side], step.attended[side])
            utilisation[f"mfu_{side}"] = flops / float(np.median(times[side].wall)) / peak / RANKS
            line += f", {utilisation[f'mfu_{side}']:.1%} of the peak throughput"
        print(line)
    token_ratio = step.tokens["duplicated"] / step.tokens["packed"]
    step_time_ratio = ratio(duplicate.wall, packed.wall)
    print(f"  duplicated over packed: {token_ratio:.3f} times the tokens, {step_time_ratio:.3f} times the time")
    report(
        shape=name,
        token_ratio=token_ratio,
        step_time_ratio=step_time_ratio,
        cpu_time_ratio=ratio(duplicate.cpu, packed.cpu),
        peak_memory_ratio=memory["duplicated"] / memory["packed"] if memory else None,
        max_grad_rel_err=error,
        device=device,
        model=case.model,
        ranks=RANKS,
        repetitions=repetitions,
        **{f"tokens_{side}": step.tokens[side] for side in SIDES},
        **{f"step_s_{side}": float(np.median(times[side].wall)) for side in SIDES},
        **utilisation,
    )
    parallel.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="paper")
    parser.add_argument("--model", choices=MODELS, default="1.5b" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trees", type=int, default=1, help="trees of one step")
    parser.add_argument("--max-tokens", type=int, default=16384, help="budget of a micro-batch, the same for both")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    for name in SHAPES if options.shape == "all" else [options.shape]:
        shape, model = SHAPES[name], options.model
        if options.tiny:
            shape, model = replace(shape, prompt_tokens=8, path_tokens=40, step_tokens=5), "tiny"
        measure(name, Case(shape, model, options.trees, options.max_tokens), options.repetitions)


if __name__ == "__main__":
    main()
