"""``nemo-ibtpo eval model.path=... benchmark=... output_dir=...`` and ``nemo-ibtpo eval compare A B``.

A pattern in ``model.path``, such as ``runs/demo/hf_step_*``, evaluates several checkpoints and draws their curve.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_ibtpo.checkpoints import MEGATRON, MODEL
from nemo_ibtpo.commands import asks_help
from nemo_ibtpo.config import help_text
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.generation_config import TAKEN, with_own_sampling
from nemo_ibtpo.config.loader import compose_evaluation
from nemo_ibtpo.config.schema import EvalConfig
from nemo_ibtpo.config.validation import check_output_dir, validate
from nemo_ibtpo.data.sources import check_sources

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers

_COMPARISON_SEED = 0
_MAX_SHARD_BYTES = 5 * 10**9


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``eval``."""
    parser = commands.add_parser(
        "eval",
        allow_abbrev=False,
        help="evaluate a model on benchmarks, or compare two evaluations",
        usage="nemo-ibtpo eval model.path=<directory> benchmark=<name>[,...] output_dir=<directory> [key=value ...] "
        "[--dry-run]\n       nemo-ibtpo eval compare <first> <second> [--write STEM]",
        description="Evaluate a Hugging Face model directory or a Megatron checkpoint on benchmarks, or several "
        "checkpoints of a run with model.path='runs/demo/hf_step_*'; started again, it goes on where it was. "
        "Or compare two evaluations, paired over problems.",
        epilog=help_text.eval_epilog() if asks_help(argv) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys and group choices, below")
    parser.add_argument("--dry-run", action="store_true", help="compose, validate, print the plan, start nothing")
    parser.add_argument("--write", type=Path, metavar="STEM", help="compare: also write STEM.json and STEM.md")


def run(arguments: argparse.Namespace) -> int | None:
    """Evaluate, plan an evaluation, or compare two."""
    if arguments.overrides[:1] == ["compare"]:
        if arguments.dry_run:
            raise UserError("eval compare takes no --dry-run")
        _compare(arguments.overrides[1:], arguments.write)
        return None
    if arguments.write is not None:
        raise UserError("--write goes with eval compare; an evaluation writes to its output_dir")
    models = {
        step: [_sampled_as_asked(config, arguments.overrides) for config in configs]
        for step, configs in _models(arguments.overrides).items()
    }
    for configs in models.values():
        if arguments.dry_run or not _is_checkpoint(configs[0]):
            _check_and_print(configs)
    if arguments.dry_run:
        print("dry run: nothing was started, no data was read")
        return None
    _evaluate(models)
    return None


def _models(overrides: Sequence[str]) -> dict[int | None, list[EvalConfig]]:
    """What is evaluated: a model, or, by their steps, the checkpoints that a pattern in ``model.path`` names."""
    configs = _compose(overrides)
    pattern, output_dir = configs[0].model.path, configs[0].output_dir
    if "*" not in pattern:
        return {None: configs}
    from nemo_ibtpo.evaluation.checkpoints import checkpoints_of  # imports matplotlib

    others = [override for override in overrides if not override.startswith(("model.path=", "output_dir="))]
    return {
        step: _compose([*others, f"model.path='{path}'", f"output_dir='{Path(output_dir) / f'step_{step}'}'"])
        for step, path in checkpoints_of(pattern).items()
    }


def _check_and_print(configs: Sequence[EvalConfig]) -> None:
    for config in configs:
        validate(config, "eval")
        check_sources(config.benchmark.data)
        if int(os.environ.get("RANK", "0")) == 0:
            print(_plan(config), flush=True)


def _compose(overrides: Sequence[str]) -> list[EvalConfig]:
    """One configuration a benchmark."""
    chosen = [word for word in overrides if word.startswith("benchmark=")]
    if len(chosen) != 1:
        raise UserError(
            f"eval takes one benchmark=<name>[,<name> ...], not {len(chosen)}; `nemo-ibtpo eval --help` lists them"
        )
    names = chosen[0].removeprefix("benchmark=").split(",")
    if len(set(names)) < len(names):
        raise UserError(f"{chosen[0]} names a benchmark twice")
    others = [word for word in overrides if not word.startswith("benchmark=")]
    return [compose_evaluation(name, others) for name in names]


def _sampled_as_asked(config: EvalConfig, overrides: Sequence[str]) -> EvalConfig:
    """The configuration with the model's own sampling parameters if it asks for them."""
    if config.sampling == "rollout":
        return config
    decided = tuple(f"rollout.{name}=" for name in TAKEN)
    if both := [word for word in overrides if word.lstrip("+").startswith(decided)]:
        raise UserError(
            f"'{both[0]}' on the command line: sampling=generation_config decides it; take one of them out"
        )
    model = Path(config.model.path)
    own = with_own_sampling(config.rollout, model / MODEL if _is_checkpoint(config) else model)
    return replace(config, rollout=own)


def _is_checkpoint(config: EvalConfig) -> bool:
    return (Path(config.model.path) / MEGATRON).is_dir()


def _as_hugging_face(configs: Sequence[EvalConfig]) -> list[EvalConfig]:
    """Rank 0 converts a Megatron checkpoint to ``output_dir/model``, each time again, and all evaluate that."""
    from nemo_ibtpo.collectives import from_rank_0
    from nemo_ibtpo.conversion.convert import megatron_to_hf  # imports torch and Megatron
    from nemo_ibtpo.reporting.progress import RunConsole

    source, converted = Path(configs[0].model.path), Path(configs[0].output_dir) / "model"

    def convert() -> None:
        check_output_dir(configs[0].output_dir)
        megatron_to_hf(
            source,
            converted,
            provider=configs[0].model.provider,
            dtype=None,
            max_shard_bytes=_MAX_SHARD_BYTES,
            force=True,
            verify=False,
            console=RunConsole(0),
        )

    from_rank_0(convert)
    return [replace(config, model=replace(config.model, path=str(converted))) for config in configs]


def _plan(config: EvalConfig) -> str:
    benchmark, rollout = config.benchmark, config.rollout
    data = asdict(benchmark.data)
    which = ", ".join(f"{name} {data[name]}" for name in ("subset", "split", "size") if data[name] is not None)
    lines = {
        "model": f"{config.model.path} in {config.model.dtype}, {rollout.engine}",
        "data": f"{data['source']} {data['path']}{f' ({which})' if which else ''}, verifier {data['verifier']}",
        "samples": f"{benchmark.samples_per_problem} a problem, at most {rollout.max_new_tokens:,} tokens, "
        f"{', '.join(f'{name} {getattr(rollout, name):g}' for name in TAKEN)}"
        f"{' (of generation_config.json)' * (config.sampling == 'generation_config')}, seed {config.seed}",
        "writes": str(Path(config.output_dir) / benchmark.name),
    }
    return "\n".join([f"evaluation on '{benchmark.name}'", *(f"  {key:<8} {text}" for key, text in lines.items())])


def _evaluate(models: Mapping[int | None, Sequence[EvalConfig]]) -> None:
    from nemo_ibtpo.evaluation.checkpoints import write_curve
    from nemo_ibtpo.evaluation.evaluation import run_evaluation  # imports torch
    from nemo_ibtpo.evaluation.ranks import joined_ranks
    from nemo_ibtpo.evaluation.summary import table
    from nemo_ibtpo.reporting.progress import RunConsole

    with joined_ranks() as rank:
        console = RunConsole(rank)
        results = {}
        for step, configs in models.items():
            if _is_checkpoint(configs[0]):
                configs = _as_hugging_face(configs)
                _check_and_print(configs)
            own = [run_evaluation(config, console) for config in configs]
            directory = Path(configs[0].output_dir)
            if rank == 0:
                console.show(table(own))
                console.say(f"samples and summaries are in {directory}")
            if step is not None:
                results[step] = own
        if results and rank == 0:
            console.show(write_curve(results, directory.parent).for_terminal())
            console.say(f"the curve is in {directory.parent}")


def _compare(paths: Sequence[str], stem: Path | None) -> None:
    if len(paths) != 2:
        raise UserError(f"eval compare takes two evaluations, not {len(paths)}")
    from nemo_ibtpo.evaluation.summary import compare_results, comparison_table, read_results, write_comparison
    from nemo_ibtpo.reporting.progress import RunConsole

    first, second = (read_results(Path(path)) for path in paths)
    compared = compare_results(first, second, _COMPARISON_SEED)
    console = RunConsole(0)
    console.say(f"first: {paths[0]}; second: {paths[1]}")
    console.show(comparison_table(compared))
    if stem is not None:
        write_comparison(compared, (paths[0], paths[1]), stem)
        console.say(f"written to {stem}.json and {stem}.md")
