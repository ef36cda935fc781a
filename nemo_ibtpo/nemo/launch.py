"""Training as a NeMo-Run experiment, from the command line.

    python -m nemo_ibtpo.nemo.launch recipe=tiny --executor local
    python -m nemo_ibtpo.nemo.launch recipe=my_recipe.yaml --executor slurm --nodes 2 --ranks-per-node 8 \\
        --time 04:00:00 --account ... --partition ... --retries 20

Everything that training would refuse at its start is refused here, before anything is submitted.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from nemo_ibtpo.config.batch_plan import batch_plan
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager import is_new_each_time
from nemo_ibtpo.config.hydra_flags import add_hydra_flags, arguments_with_recipe
from nemo_ibtpo.config.layout import fewest_ranks
from nemo_ibtpo.config.loader import composition, recipe_and_overrides
from nemo_ibtpo.config.validation import max_seconds, validate

_SLURM_ONLY = ("account", "partition", "container_image", "venv", "time")
_TO_SAVE_S = 600  # as slurm/train_ibtpo.sh leaves


def main(argv: Sequence[str]) -> int:
    """Launch; the exit status."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        return _launch(arguments)
    except UserError as error:
        print(f"nemo-ibtpo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nemo_ibtpo.nemo.launch", allow_abbrev=False, description="Train as an experiment of NeMo-Run."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as nemo-ibtpo train takes them")
    add_hydra_flags(parser)
    parser.add_argument("--executor", choices=("local", "slurm"), required=True)
    parser.add_argument("--dry-run", action="store_true", help="show what would be run, start nothing")
    parser.add_argument("--ranks-per-node", type=int, metavar="N", help="default: the fewest that hold the model")
    slurm = parser.add_argument_group("for --executor slurm")
    slurm.add_argument("--nodes", type=int, default=1, metavar="N")
    slurm.add_argument("--no-gpus", action="store_true", help="ranks on CPUs; otherwise each rank has a GPU")
    slurm.add_argument("--time", metavar="[D-]HH:MM:SS", help="limit of the job; the run stops and saves ahead of it")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--container-image", metavar="IMAGE")
    slurm.add_argument("--container-mounts", metavar="FROM:TO,...", help="further ones than checkout and directory")
    slurm.add_argument("--venv", metavar="DIR", help="virtual environment, without a container")
    slurm.add_argument("--retries", type=int, default=0, metavar="N", help="how often the job may be queued again")
    return parser


def _launch(arguments: argparse.Namespace) -> int:
    slurm = arguments.executor == "slurm"
    _check_options(arguments)
    overrides = arguments_with_recipe(arguments.config_path, arguments.config_name, arguments.overrides)
    request = composition(*recipe_and_overrides(overrides))
    asked = request.asked(request.compose())
    block = asked.exp_manager
    if slurm and arguments.retries and block is not None and is_new_each_time(block):
        raise UserError(
            "--retries goes on with a run, exp_manager starts a new directory each time: "
            "use exp_manager.resume_if_exists=true"
        )
    config = asked.at_this_start()
    per_node = arguments.ranks_per_node or max(1, fewest_ranks(config) // arguments.nodes)
    validate(config, "train", arguments.nodes * per_node)
    print(batch_plan(config, arguments.nodes * per_node), flush=True)
    flags = {"--config-path": arguments.config_path, "--config-name": arguments.config_name}
    job = [*(f"{flag}={value}" for flag, value in flags.items() if value), *arguments.overrides]
    if slurm:
        job += _stop_ahead(arguments.time, config.trainer.max_time)
    return _run(arguments, config.name, job, per_node)


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.executor == "local":
        given = [name for name in _SLURM_ONLY if getattr(arguments, name)]
        if given or arguments.nodes != 1:
            name = (given or ["nodes"])[0].replace("_", "-")
            raise UserError(f"--{name} has no meaning for --executor local, which is this machine")
    elif arguments.time is None:
        raise UserError("--executor slurm needs --time, the limit of the job")
    for name in ("nodes", "ranks_per_node"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be above 0")


def _stop_ahead(limit: str, max_time: str | None) -> list[str]:
    """The word that lets a run stop and save ahead of the limit of its job, if its recipe does not."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", limit)
    if match is None:
        raise UserError(f"--time {limit}: write it as HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    stop = max_seconds(max_time)
    if stop is not None:
        if stop >= total:
            raise UserError(f"the run stops after {max_time} to save itself, which is not ahead of --time {limit}")
        return []
    if total <= _TO_SAVE_S:
        raise UserError(
            f"--time {limit} leaves no {_TO_SAVE_S // 60} minutes to save in: give more, or say when to stop with "
            "trainer.max_time"
        )
    left = total - _TO_SAVE_S
    return [f"trainer.max_time='{left // 3600:02}:{left // 60 % 60:02}:{left % 60:02}'"]


def _run(arguments: argparse.Namespace, name: str, overrides: Sequence[str], per_node: int) -> int:
    try:
        import nemo_run as run

        from nemo_ibtpo.nemo.jobs import local_executor, slurm_executor, training_script
    except ImportError as error:
        raise UserError(f"nemo_run cannot be imported ({error}): pip install 'nemo-ibtpo[nemo]'") from error

    executor: Any
    if arguments.executor == "local":
        executor, python = local_executor(per_node), sys.executable
    else:
        python = "python3"
        executor = slurm_executor(
            nodes=arguments.nodes,
            ranks_per_node=per_node,
            gpus=not arguments.no_gpus,
            time=arguments.time,
            account=arguments.account,
            partition=arguments.partition,
            container_image=arguments.container_image,
            container_mounts=arguments.container_mounts.split(",") if arguments.container_mounts else (),
            venv=arguments.venv,
            retries=arguments.retries,
        )
    with run.Experiment(name, executor=executor) as experiment:
        experiment.add(training_script(overrides, python=python), name="train", tail_logs=True)
        if arguments.dry_run:
            experiment.dryrun()
            return 0
        experiment.run(detach=arguments.executor == "slurm")
    if arguments.executor == "slurm":
        return 0
    states = {str(job["status"]) for job in experiment.status(return_dict=True).values()}
    return 0 if states == {"SUCCEEDED"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
