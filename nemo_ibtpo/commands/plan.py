"""``nemo-ibtpo plan recipe=<name or path> [key=value ...]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose, recipe_and_overrides
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.planning.assumptions import Assumptions, assumption_fields
from nemo_ibtpo.planning.model_shape import find_config
from nemo_ibtpo.planning.plan_report import as_json, as_text
from nemo_ibtpo.planning.planner import Lengths, default_world_size, make_plan, source_of, suggest

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers

_EXAMPLES = """\
examples:
  nemo-ibtpo plan recipe=ibtpo-qwen3-8b-base-1n8g-tp2pp1
  nemo-ibtpo plan recipe=my_recipe.yaml actor.recompute=full --world-size 16
  nemo-ibtpo plan recipe=my_recipe.yaml --gpu-memory-gb 140 --hbm-tb-s 4.8      # H200
  nemo-ibtpo plan recipe=my_recipe.yaml --response-tokens 900 --json
"""


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``plan``."""
    plan = commands.add_parser(
        "plan",
        allow_abbrev=False,
        help="predict memory and step time of a recipe, without a GPU and without the model's weights",
        usage="nemo-ibtpo plan recipe=<name or path> [key=value ...] [--world-size N] [--json] [options]",
        description="Memory by part and phase, seconds by phase, and what would fit where a recipe does not.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=... and keys, as `train` takes them")
    plan.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="GPUs (default: what <N>n<G>g in the recipe's name says, else the fewest that hold the model)",
    )
    plan.add_argument("--json", action="store_true", help="print figures for a program, in bytes, seconds and tokens")
    for name in ("prompt", "response"):
        plan.add_argument(
            f"--{name}-tokens",
            type=float,
            metavar="X",
            help=f"mean length of a {name} (default: the longest allowed)",
        )
    assumed = plan.add_argument_group("assumptions")
    for name, (default, meaning) in assumption_fields().items():
        assumed.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=default, metavar="X", help=f"{meaning} ({default:g})"
        )


def run(arguments: argparse.Namespace) -> None:
    """Print the plan.

    Raises:
        UserError: the configuration contradicts itself or its model, or an option is out of range.
    """
    config = compose(*recipe_and_overrides(arguments.overrides, "plan"))
    validate(config, "plan")
    assumptions, lengths = _assumptions(arguments), Lengths(arguments.prompt_tokens, arguments.response_tokens)
    for name, length, longest in (
        ("prompt", lengths.prompt, config.data.max_prompt_tokens),
        ("response", lengths.response, config.rollout.max_new_tokens),
    ):
        if length is not None and not 0 < length <= longest:
            raise UserError(f"--{name}-tokens {length:g} must be above 0 and at most {longest}, the longest allowed")
    world_size = arguments.world_size if arguments.world_size is not None else default_world_size(config)
    if world_size < 1:
        raise UserError(f"--world-size {world_size} must be above 0")
    hf_config, file = find_config(config.model.path, config.model.provider)
    plan = make_plan(config, hf_config, world_size, assumptions, lengths)
    suggestion = suggest(config, hf_config, world_size, assumptions, lengths) if plan.problem else None
    write = as_json if arguments.json else as_text
    print(write(plan, source_of(plan, file), assumptions, suggestion))


def _assumptions(arguments: argparse.Namespace) -> Assumptions:
    values = {name: getattr(arguments, name) for name in assumption_fields()}
    for name, value in values.items():
        if value <= 0 or (name in ("mfu", "moe_mfu", "hbm_efficiency", "branch_share") and value > 1):
            raise UserError(f"--{name.replace('_', '-')} {value:g} is out of range")
    return Assumptions(**values)
