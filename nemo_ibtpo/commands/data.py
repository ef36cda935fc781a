"""``nemo-ibtpo data check recipe=...``: what becomes of the data of a recipe, before anything is started."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose, recipe_and_overrides
from nemo_ibtpo.config.mixtures import training_parts, validation_parts

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers
    from nemo_ibtpo.config.schema import DatasetConfig, RunConfig
    from nemo_ibtpo.data.problems import Problem

_EXAMPLES = 3


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``data``."""
    parser = commands.add_parser(
        "data",
        allow_abbrev=False,
        help="read the data of a recipe and show what becomes of it",
        usage="nemo-ibtpo data check recipe=<name or path> [key=value ...]",
        description="Read training and validation data as training would: three prompts with their special tokens, "
        "gold answers, counts, lengths, what is left out and why. Needs the tokenizer only.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="`check`, then recipe=... and keys")


def run(arguments: argparse.Namespace) -> int | None:
    """Read and show."""
    action, *overrides = arguments.overrides or [""]
    if action != "check":
        raise UserError("data has one action: nemo-ibtpo data check recipe=<name or path> [key=value ...]")
    _check(compose(*recipe_and_overrides(overrides, "data check")))
    return None


def _check(config: RunConfig) -> None:
    from transformers import AutoTokenizer

    from nemo_ibtpo.data.parts import load_parts
    from nemo_ibtpo.rewards.gold import keep_verifiable
    from nemo_ibtpo.rewards.pool import VerifierPool

    validating, training = validation_parts(config.data), training_parts(config.data)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, local_files_only=True)
    pool = VerifierPool(tokenizer, config.reward)
    try:
        for part, problems, report in load_parts(
            [*validating, *training],
            config.data,
            tokenizer,
            lambda problems, report: keep_verifiable(problems, pool, report),
        ):
            kind = "validation" if part in validating else "training"
            print(f"{kind} data{f' {part.name!r}' if part.name else ''}: {report.summary()}")
            if part in training and part.name:
                share = part.weight / sum(other.weight for other in training)
                steps = len(problems) / (share * config.trainer.num_prompts_per_step)
                print(f"  weight {part.weight:g}: {share:.1%} of the prompts; an epoch in {steps:,.1f} steps")
            _show(problems, part.dataset, tokenizer)
    finally:
        pool.close()


def _show(problems: Sequence[Problem], dataset: DatasetConfig, tokenizer: Any) -> None:
    lengths = sorted(len(problem.prompt_tokens) for problem in problems)
    middle = lengths[len(lengths) // 2]
    print(f"  prompt tokens: {lengths[0]} to {lengths[-1]}, median {middle}; verifier {dataset.verifier}")
    for problem in problems[:_EXAMPLES]:
        print(f"  prompt {problem.problem_id}: {tokenizer.decode(list(problem.prompt_tokens))!r}")
        accepted = [problem.answer, *problem.metadata.get("accepted", [])]
        print(f"    gold answer: {' or '.join(map(repr, accepted))}")
        if row := problem.metadata.get("row"):
            print(f"    further columns: {', '.join(row)}")
