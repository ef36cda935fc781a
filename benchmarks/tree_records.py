"""What keeping trees costs: writing those of a step to the disk as a share of the step, and their size.

Trees of 12 trajectories with 2,000 response tokens each, grown by the real IB strategy from random tokens of a
vocabulary of 32,000 words, are scored, decoded by a byte-level tokenizer, compressed and written as a run does it,
with the defaults of ``conf/``. The step it is compared with has 512 prompts and is estimated as in ``overhead.py``.
Random words hardly compress: real text takes less room.

    python benchmarks/tree_records.py

The last line is JSON: ``record_share``, the seconds of a step's trees, their bytes and the estimate.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from measure import describe, in_turn, report
from overhead import PUBLISHED_STEP_S, PUBLISHED_TOKENS
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from workloads import IB_SCORE, METHOD, SHAPES, defaults, grow_tree

from nemo_ibtpo.config.schema import TreesConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.inspection.keeping import TreeKeeper
from nemo_ibtpo.methods import make_method, per_node

VOCAB = 32_000
_PROMPTS = 512


def make_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Made-up words of 2 to 8 letters, most of them with a space in front."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words: dict[str, int] = {}
    while len(words) < VOCAB:
        word = "".join(rng.choice(letters, size=rng.integers(2, 9)))
        words.setdefault(word if len(words) % 4 == 0 else f"Ġ{word}", len(words))
    core = Tokenizer(models.BPE(words, []))
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = replace(SHAPES["paper"], path_tokens=100 if options.tiny else 2000)
    config = TreesConfig(**defaults("logger")["trees"])
    count = config.trees_per_step or _PROMPTS
    strategy = shape.strategy("ib")
    trees = [grow_tree(shape, strategy, rng, prompt_id=f"{i:03}", vocab_size=VOCAB) for i in range(count)]
    advantages = [
        per_node(tree, advantage)
        for tree, advantage in zip(trees, make_method(METHOD).of_update(trees, IB_SCORE), strict=True)
    ]
    problems = {tree.prompt_id: Problem(tree.prompt_id, "?", "", "math", {}, (1,)) for tree in trees}
    decode = partial(make_tokenizer(rng).decode, clean_up_tokenization_spaces=False)
    with tempfile.TemporaryDirectory() as directory:
        archive = TreeArchive(directory)
        keeper = TreeKeeper(archive, config, IB_SCORE, {}, problems, decode)
        (times,) = in_turn(
            [lambda: keeper.keep(1, trees, advantages)],
            1 if options.tiny else options.repetitions,
            torch.device("cpu"),
        )
        size = archive.path(1).stat().st_size
    unique = sum(tree.unique_tokens for tree in trees)
    estimate = PUBLISHED_STEP_S * unique / count * _PROMPTS / PUBLISHED_TOKENS
    seconds = float(np.median(times.cpu))
    steps = sum(len(tree.nodes) - 1 for tree in trees)
    print(f"{count} trees, {steps} steps, {unique} unique tokens: {times} wall, {size / 2**20:.2f} MiB")
    report(
        record_share=seconds / estimate,
        record_s=seconds,
        record_mib=size / 2**20,
        step_s_estimated=estimate,
        trees=count,
        unique_tokens=unique,
        device=describe(torch.device("cpu")),
    )


if __name__ == "__main__":
    main()
