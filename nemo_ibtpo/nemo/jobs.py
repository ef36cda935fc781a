"""Training as a job of NeMo-Run: one script, and the executors that run it. The one module that imports nemo_run.

    import nemo_run as run
    from nemo_ibtpo.nemo.jobs import local_executor, slurm_executor, training_script

    with run.Experiment("ibtpo", executor=slurm_executor(nodes=2, ranks_per_node=8, time="04:00:00")) as experiment:
        experiment.add(training_script(["recipe=my_recipe.yaml"]), name="train")
        experiment.run(detach=True)

Every rank runs the script; torchrun, which NeMo-Run starts on every node, gives the ranks their places. Both
executors are plain ones of NeMo-Run, to be changed as such: an SSH tunnel, another packager, a plugin.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import nemo_run as run
from nemo_run.core.execution.launcher import Torchrun

from nemo_ibtpo.config.errors import UserError

_CHECKOUT = Path(__file__).resolve().parents[2]


def training_script(overrides: Sequence[str], *, python: str = "python3") -> run.Script:
    """What every rank runs: ``nemo-ibtpo train`` with these overrides, in the current directory.

    Args:
        overrides: as ``nemo-ibtpo train`` takes them, flags among them.
        python: the interpreter, as the executor's machines know it.
    """
    # A script rather than a module with arguments, which NeMo-Run would quote for a shell that LocalExecutor has not.
    train = f"{shlex.quote(python)} -m nemo_ibtpo.cli train {shlex.join(overrides)}"
    return run.Script(inline=f"cd {shlex.quote(str(Path.cwd()))} && exec {train}\n")


def local_executor(ranks: int) -> run.LocalExecutor:
    """``ranks`` processes under torchrun on this machine, in this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # where torchrun is
    return run.LocalExecutor(ntasks_per_node=ranks, launcher="torchrun", env_vars={**_environment(), "PATH": path})


def slurm_executor(
    *,
    nodes: int,
    ranks_per_node: int,
    time: str,
    gpus: bool = True,
    account: str | None = None,
    partition: str | None = None,
    container_image: str | None = None,
    container_mounts: Sequence[str] = (),
    venv: str | None = None,
    retries: int = 0,
) -> run.SlurmExecutor:
    """The job of ``slurm/train_ibtpo.sh``: whole nodes, one torchrun on each, queued again when it ends early.

    Args:
        nodes, ranks_per_node: the world is their product.
        time: limit of the job.
        gpus: one for each rank.
        account, partition: of the cluster, None for its defaults.
        container_image: run in it (pyxis); this checkout and the current directory are mounted.
        container_mounts: ``from:to``, further ones.
        venv: virtual environment to run in, without a container.
        retries: how often a job that ends with an error, which a stop ahead of the limit also is, is queued again.

    Raises:
        UserError: NeMo-Run would take a path apart.
    """
    if container_image is None:
        # NeMo-Run puts the job's directory in the place of a container's mount, wherever that text stands.
        for path in (run.config.get_nemorun_home(), str(Path.cwd())):
            if (mount := f"/{run.config.RUNDIR_NAME}") in path:
                raise UserError(f"{path}: without a container NeMo-Run replaces {mount} in paths; use another")
    here = [str(path) for path in dict.fromkeys((_CHECKOUT, Path.cwd()))]
    return run.SlurmExecutor(
        account=account,
        partition=partition,
        job_name_prefix="ibtpo-",
        nodes=nodes,
        ntasks_per_node=ranks_per_node,  # of torchrun, which is the one task that Slurm starts
        gpus_per_node=ranks_per_node if gpus else None,
        time=time,
        mem="0",
        exclusive=True,
        # A port of its own: at NeMo-Run's own one, ranks may meet those of another job on the first node.
        launcher=Torchrun(rdzv_port=random.randrange(20000, 30000)),
        container_image=container_image,
        container_mounts=[*(f"{path}:{path}" for path in here), *container_mounts] if container_image else [],
        # As in slurm/lib/common.sh: the task has all CPUs, since the ranks are its children.
        srun_args=["--cpu-bind=none", "--mpi=none"],
        setup_lines=f"source {shlex.quote(str(Path(venv, 'bin', 'activate')))}" if venv else None,
        env_vars=_environment(),
        packager=run.Packager(),  # the checkout is where it is
        tunnel=run.LocalTunnel(job_dir=""),  # submitted here; scripts and logs are in NEMORUN_HOME, seen by all nodes
        retries=retries,
    )


def _environment() -> dict[str, str]:
    # Megatron asks for the latter with sequence parallelism.
    environment = {"PYTHONUNBUFFERED": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    if (_CHECKOUT / "pyproject.toml").is_file():
        # The checkout that was submitted is what runs.
        paths = [str(_CHECKOUT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in dict.fromkeys(paths) if path)
    return environment
