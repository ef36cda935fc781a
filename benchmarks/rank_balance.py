"""How evenly an update's work lies on the data-parallel ranks, when trees differ in shape.

Half of the trees are short and wide (many short trajectories), half long and deep (few long ones), of about as many
tokens each. A token of a deep tree attends to many more tokens before it. The schedule of micro-batches is made
twice, once as if every token cost the same and once with the attention of the model, and the floating-point
operations of each rank are counted both times. Nothing is timed.

    python benchmarks/rank_balance.py

The last line is JSON: mean over largest of the ranks' operations, scheduled by tokens and by operations.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from measure import report
from tree_training import MODELS
from workloads import Shape, grow_tree

from nemo_ibtpo.megatron.architecture import Architecture, architecture_from_config
from nemo_ibtpo.tree.microbatches import schedule
from nemo_ibtpo.tree.packing import Layout, layout

# About 33,000 tokens each.
WIDE = Shape((8, 2, 28, 4), prompt_tokens=100, path_tokens=400, step_tokens=50)
DEEP = Shape((1, 3, 1, 1), prompt_tokens=100, path_tokens=16_000, step_tokens=200)
CASES = {"1 wide and 1 deep on 2 ranks": (1, 2), "1 wide and 1 deep on 4 ranks": (1, 4), "8 and 8 on 8 ranks": (8, 8)}


def layouts(each: int, tiny: bool) -> list[Layout]:
    """Of so many trees of either shape, alternating."""
    rng, found = np.random.default_rng(0), []
    for number in range(each):
        for shape in (WIDE, DEEP):
            own = replace(shape, path_tokens=shape.path_tokens // 100, step_tokens=5) if tiny else shape
            tree = grow_tree(own, own.strategy("random"), rng, prompt_id=str(number), vocab_size=5000)
            found.append(layout(tree))
    return found


def balance(laid: list[Layout], ranks: int, max_tokens: int, model: Architecture, attention_weight: float) -> float:
    """Mean over largest of the operations of the ranks."""
    plan = schedule(laid, max_tokens=max_tokens, num_ranks=ranks, attention_weight=attention_weight)
    work = [
        sum(p.tokens * model.flops_per_token + p.pairs * model.flops_per_pair for pieces in own for p in pieces)
        for own in plan.ranks
    ]
    return float(np.mean(work) / max(work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="1.5b")
    parser.add_argument("--max-tokens", type=int, default=20_480, help="budget of a micro-batch")
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    model = architecture_from_config(MODELS[options.model])
    weight = model.flops_per_pair / model.flops_per_token
    print(f"model {options.model}: a pair that attends costs {weight:.2e} of a token")
    figures = {}
    for name, (each, ranks) in CASES.items():
        laid = layouts(each, options.tiny)
        by = {
            way: balance(laid, ranks, options.max_tokens, model, own)
            for way, own in (("tokens", 0.0), ("operations", weight))
        }
        figures[name] = by
        print(f"{name}: balance {by['tokens']:.3f} counting tokens, {by['operations']:.3f} counting operations")
    report(balance=figures, model=options.model, attention_weight=weight)


if __name__ == "__main__":
    main()
