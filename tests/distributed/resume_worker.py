"""Ranks of test_resume.py: a run as the command line starts it, whose prompts and trees are written down."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.training.run import run_training
from nemo_ibtpo.training.sampling import Sampling
from nemo_ibtpo.tree.tree import Tree


def digest(tree: Tree) -> str:
    """Of tokens, log-probabilities, draws, rewards and shape."""
    nodes = [(n.tokens, n.logprobs, n.parent, n.draws, n.reward, n.finish_reason) for n in tree.nodes]
    return hashlib.sha256(repr(nodes).encode()).hexdigest()[:16]


def main() -> None:
    grown, recipe, *words = sys.argv[1:]
    sample = Sampling.training_trees

    def recording(self: Sampling, step: int) -> tuple[list[Tree], dict[str, float]]:
        trees, verdicts = sample(self, step)
        if dist.get_rank() == 0:
            with Path(grown).open("a") as file:
                file.write(json.dumps([step, [[tree.prompt_id, digest(tree)] for tree in trees]]) + "\n")
        return trees, verdicts

    Sampling.training_trees = recording  # type: ignore[method-assign]
    config = compose(recipe, words)
    validate(config, "train", int(os.environ["WORLD_SIZE"]))
    run_training(config)


if __name__ == "__main__":
    main()
