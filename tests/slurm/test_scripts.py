"""The parts of ``slurm/`` that need no Slurm: shellcheck, help, shares of an array, bounded restarts.

The bash functions run as they are; ``srun`` alone is a stand-in, to see the options it would get for a container.
Not exercised: pyxis itself.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "slurm"


def bash(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    libraries = f"set -euo pipefail; here={SLURM}; source $here/lib/common.sh; source $here/lib/attempts.sh\n"
    return subprocess.run(
        ["bash", "-c", libraries + program],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed: apt-get install shellcheck"
)
def test_shellcheck_finds_nothing() -> None:
    files = [*map(str, sorted(SLURM.rglob("*.sh"))), str(SLURM.parent / "tests" / "debian_packages.sh")]
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["train_ibtpo", "eval", "convert"])
def test_started_plainly_a_script_tells_how_to_submit_it(name: str) -> None:
    for words in ([], ["--help"]):
        done = subprocess.run(
            ["bash", str(SLURM / f"{name}.sh"), *words], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        assert done.returncode == 0
        assert f"slurm/{name}.sh" in done.stdout
        assert "#SBATCH" not in done.stdout
    done = subprocess.run(
        ["bash", str(SLURM / f"{name}.sh"), "a=b"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "runs inside a Slurm job: sbatch" in done.stderr


def test_tasks_of_an_array_share_all_words_once() -> None:
    shares = []
    for task in range(3, 6):
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "3"}
        shares.append(bash('take_share a "b c" d e; printf "%s\\n" "${share[@]}"', **array).stdout.splitlines())
    assert shares == [["a", "e"], ["b c"], ["d"]]
    assert bash('take_share a b; echo "${share[@]}"').stdout.split() == ["a", "b"]


def test_a_job_without_progress_is_given_up(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]", "OUT": str(tmp_path)}
    begin = 'begin_attempt "$OUT"; echo "$attempt"'
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in ("step_2", "step_4", "step_4", "step_4"):
        (checkpoints / "latest").unlink(missing_ok=True)
        (checkpoints / "latest").symlink_to(step)
        done = bash(begin, **job)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/slurm/7/attempt-4"
    assert (tmp_path / "slurm" / "latest").resolve() == tmp_path / "slurm" / "7" / "attempt-4"
    done = bash(begin, **job)
    assert done.returncode == 1
    assert "3 attempts in a row ended without a new checkpoint (step 4)" in done.stderr
    (checkpoints / "latest").unlink()
    (checkpoints / "latest").symlink_to("step_6")
    assert bash(begin, **job).returncode == 0


def test_srun_gets_the_container(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    settings = {"IBTPO_CONTAINER": "/i.sqsh", "IBTPO_MOUNTS": "/data:/data"}
    done = bash(
        f"cd {tmp_path}; PATH={tmp_path}:$PATH on_nodes 3 --output=x -- python m",
        **settings,
    )
    words = done.stdout.splitlines()
    assert "--nodes=3" in words
    assert "--container-image=/i.sqsh" in words
    assert f"--container-mounts={SLURM.parent}:{SLURM.parent},{tmp_path}:{tmp_path},/data:/data" in words
    assert words[-4:] == ["bash", f"{SLURM}/lib/node.sh", "python", "m"]


def test_every_node_gives_torchrun_the_address_that_slurm_knows(tmp_path: Path) -> None:
    """The ranks meet at the address of the first node and not at the name the machine gives itself."""
    (tmp_path / "scontrol").write_text(
        '#!/bin/sh\ncase "$*" in\n"show hostnames"*) printf "n0\\nn1\\n" ;;\n'
        '*n0) echo "NodeName=n0 NodeAddr=10.0.0.7 NodeHostName=n0" ;;\n'
        '*n1) echo "NodeName=n1 NodeAddr=10.0.0.9 NodeHostName=n1" ;;\nesac\n'
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for program in (tmp_path / "scontrol", tmp_path / "bin" / "python3"):
        program.chmod(0o755)
    done = bash(f'PATH={tmp_path}:$PATH; echo "$(node_addresses)"', SLURM_JOB_NODELIST="n[0-1]")
    assert done.stdout.strip() == "10.0.0.7 10.0.0.9", done.stderr
    for node, address in enumerate(done.stdout.split()):
        job = {"SLURM_NODEID": str(node), "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}
        job |= {"IBTPO_ADDRESSES": done.stdout.strip(), "IBTPO_HEAD": "10.0.0.7:20007", "IBTPO_RANKS": "8"}
        job |= {"IBTPO_STOP_FILE": str(tmp_path / "stop"), "IBTPO_VENV": str(tmp_path), "IBTPO_MODULES": ""}
        ran = subprocess.run(
            ["bash", str(SLURM / "lib" / "node.sh"), "torchrun", "some.module"],
            env={"PATH": "/usr/bin:/bin", "IBTPO_CONTAINER": "", **job},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert f"--local-addr={address}" in ran.stdout.splitlines()
        assert f"--rdzv-conf=is_host={'true' if node == 0 else 'false'}" in ran.stdout.splitlines()


def in_a_job(
    tmp_path: Path, script: str, *words: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script with stand-ins for ``srun``, which notes its words, and ``scontrol``; what srun was to run."""
    programs = {
        "srun": '#!/bin/bash\nfor w; do [ "$seen" ] && echo "$w" >>"$NOTES"; [[ $w == */node.sh ]] && seen=1; done\n'
        'printf "plan\\nout\\ncpu\\nopen\\n"\n',
        "scontrol": '#!/bin/sh\n[ -z "$BROKEN" ] || exit 1\ncase "$*" in\n"show hostnames"*) printf "n0\\nn1\\n" ;;\n'
        'show\\ node*) echo "NodeName=n NodeAddr=10.0.0.7 NodeHostName=n" ;;\n'
        f'*) echo "   Command={SLURM}/x.sh a=b" ;;\nesac\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    notes = tmp_path / "notes"
    notes.write_text("")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "1", "NOTES": str(notes)}
    done = subprocess.run(
        ["bash", script, *words],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **job, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    return done, notes.read_text().split()


TWO_RANKS, GPUS, BROKEN = {"IBTPO_RANKS_PER_NODE": "2"}, {"SLURM_GPUS_ON_NODE": "8"}, {"BROKEN": "1"}


@pytest.mark.parametrize(
    ("script", "words", "environment", "said", "ran"),
    [
        ("convert.sh", [], {}, "error: no checkpoint to convert", None),
        ("convert.sh", ["--dtype"], {}, "error: --dtype has no value", None),
        ("convert.sh", ["--dtype", "bf16", "r/c/step_1"], {}, "", "r/c/step_1 r/hf_step_1 --dtype bf16"),
        ("convert.sh", ["r/c/step_1", "--verify"], {}, "", "megatron-to-hf r/c/step_1 r/hf_step_1 --verify"),
        ("train_ibtpo.sh", ["recipe=a"], {"IBTPO_RANKS_PER_NODE": "two"}, "=two is no number of ranks", None),
        ("train_ibtpo.sh", [], TWO_RANKS | {"IBTPO_ARGS": "recipe=a\n seed=2"}, "", "recipe=a seed=2"),
        ("train_ibtpo.sh", ["recipe=a", "--dry-run"], TWO_RANKS, "dry run", "--world-size 2 recipe=a"),
        ("train_ibtpo.sh", ["recipe=a"], TWO_RANKS | BROKEN, "scontrol does not tell the nodes", None),
        ("renamed.sh", ["recipe=a", "--dry-run"], TWO_RANKS, "dry run", "recipe=a"),
        ("renamed.sh", ["recipe=a"], BROKEN, "error: slurm/lib is not beside this script", None),
        ("eval.sh", ["benchmark=a", "--dry-run"], GPUS, "", "python nemo_ibtpo.cli eval benchmark=a --dry-run"),
        ("eval.sh", ["benchmark=a"], {"SLURM_GPUS_ON_NODE": "1"}, "", "python nemo_ibtpo.cli eval benchmark=a"),
        ("eval.sh", ["benchmark=a"], GPUS, "", "torchrun nemo_ibtpo.cli eval benchmark=a"),
    ],
)
def test_what_a_script_makes_of_its_words(
    tmp_path: Path, script: str, words: list[str], environment: dict[str, str], said: str, ran: str | None
) -> None:
    path = SLURM / script
    if script == "renamed.sh":
        path = Path(shutil.copy(SLURM / "train_ibtpo.sh", tmp_path / script))
    done, noted = in_a_job(tmp_path, str(path), *words, **environment)
    errors = [line for line in done.stderr.splitlines() if line]
    assert said in done.stdout + done.stderr
    if "error" in said or ran is None:
        assert done.returncode == 1
        assert len(errors) == 1, errors
    if ran is not None:
        assert ran in " ".join(noted)
