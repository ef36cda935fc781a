"""The command line tells every mistake in one line, with the right status, once, and never hangs.

Why this matters: a run has hundreds of ranks, and a stack trace of each is how a misspelt key looks without this.
Where a test needs a training run that fails, it puts a failing one in the place of the real one; what is tested is
how the process ends. Not exercised: training itself.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from model_directories import write_model_directory

from nemo_ibtpo import __version__, cli
from nemo_ibtpo.config.errors import UserError

RECIPE = """\
defaults: [config, {{override /data: reasoning_gym}}, _self_]
output_dir: {directory}/runs
model: {{path: {directory}/model}}
data: {{train: {{path: chain_sum}}}}
"""
# A program that is the command line with another training run behind it.
PROGRAM = """\
import sys, types
from nemo_ibtpo import cli
from nemo_ibtpo.config.errors import UserError
def run_training(config):
{body}
sys.modules["nemo_ibtpo.training.run"] = types.SimpleNamespace(run_training=run_training)
cli.entry()
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    write_model_directory(tmp_path / "model")
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(directory=tmp_path))
    return f"recipe={path}"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the training run raise."""

    def install(error: BaseException) -> None:
        def run_training(_: object) -> None:
            raise error

        module = types.SimpleNamespace(run_training=run_training)
        monkeypatch.setitem(sys.modules, "nemo_ibtpo.training.run", module)  # type: ignore[arg-type]

    return install


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    unwanted = ("RANK", "WORLD_SIZE", "PYTHONUNBUFFERED")  # the last one would hide output that is not flushed
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def program(directory: Path, body: str) -> str:
    path = directory / "program.py"
    path.write_text(PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines())))
    return str(path)


def test_dry_run_prints_the_plan_and_touches_nothing(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["train", recipe, "--dry-run", "trainer.max_steps=3"]) == 0
    out = capsys.readouterr().out
    assert "1 rank = 1 tensor x 1 pipeline x 1 data parallel" in out and "3 in the run of 3 steps" in out
    assert out.endswith("dry run for 1 rank: nothing was started\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_plans_for_the_fewest_ranks_or_for_those_asked(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", recipe, "actor.pipeline_model_parallel_size=2", "--dry-run"]
    assert cli.main(words) == 0
    assert "dry run for 2 ranks" in capsys.readouterr().out
    assert cli.main([*words, "--world-size", "8"]) == 0
    assert "8 ranks = 1 tensor x 2 pipeline x 4 data parallel" in capsys.readouterr().out
    assert cli.main([*words, "--world-size", "3"]) == 2
    assert "3 ranks cannot hold copies of a model on 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train takes one recipe=<name or path>, not 0"),
        (["recipe=a", "recipe=b"], "train takes one recipe=<name or path>, not 2"),
        (["recipe=tinny"], "no such recipe (did you mean 'tiny'?)"),
        (["RECIPE", "--dryrun"], "unknown option --dryrun; see nemo-ibtpo --help"),
        (["RECIPE", "--dry"], "unknown option --dry"),
        (["RECIPE", "--world-size", "many"], "argument --world-size: invalid int value: 'many'"),
        (["RECIPE", "--world-size", "2"], "--world-size plans a dry run"),
        (["RECIPE", "--dry-run", "actor.tensor_paralel_size=2"], "did you mean 'actor.tensor_model_parallel_size'"),
        (["RECIPE", "seed"], "'seed' on the command line is not key=value"),
        (["RECIPE", "model.path=nowhere"], "model.path=nowhere: there is no such directory"),
        (["RECIPE", "actor.tensor_model_parallel_size=2"], "1 rank cannot hold copies of a model on 2"),
        (["RECIPE", "--dry-run", "actor.tensor_model_parallel_size=4"], "use one of 1, 2"),
        (["RECIPE", "--dry-run", "output_dir="], "output_dir is empty; name a directory"),
        (
            ["RECIPE", "--dry-run", "data=jsonl", "data.train.path=no.jsonl", "data.validation.path=no.jsonl"],
            "data file no.jsonl does not exist",
        ),
        (["RECIPE", "output_dir=/proc/runs"], "output_dir=/proc/runs: cannot write to /proc"),
    ],
)
def test_mistakes(words: list[str], message: str, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *(recipe if word == "RECIPE" else word for word in words)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("nemo-ibtpo: error: ") and message in err
    assert err.count("\n") == 1 and out == ""


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "invalid choice: 'trian' (choose from" in capsys.readouterr().err


def test_a_mistake_that_training_finds_is_one_line(
    recipe: str, training: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(UserError("data.train: no problem is left,\nevery prompt is too long"))
    assert cli.main(["train", recipe]) == 2
    expected = "nemo-ibtpo: error: data.train: no problem is left, every prompt is too long\n"
    assert capsys.readouterr().err == expected


def test_a_defect_shows_its_traceback(
    recipe: str, training: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(RuntimeError("no such collective"))
    assert cli.main(["train", recipe]) == 1
    assert "Traceback" in (err := capsys.readouterr().err) and "RuntimeError: no such collective" in err


def test_a_full_disk_is_one_line(
    recipe: str, training: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.jsonl"))
    assert cli.main(["train", recipe]) == 2
    err = capsys.readouterr().err
    assert err == "nemo-ibtpo: error: [Errno 28] No space left on device: '/runs/metrics.jsonl'\n"


def test_an_interrupt_is_one_line(
    recipe: str, training: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(KeyboardInterrupt())
    assert cli.main(["train", recipe]) == 130
    assert capsys.readouterr().err == "nemo-ibtpo: interrupted\n"


def test_a_failed_run_waits_for_nobody(recipe: str, tmp_path: Path) -> None:
    body = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    body += "print('last words')\nraise RuntimeError('late')"
    start = time.monotonic()
    result = run(program(tmp_path, body), "train", recipe)
    assert result.returncode == 1 and "RuntimeError: late" in result.stderr
    assert time.monotonic() - start < 30
    assert result.stdout.endswith("last words\n")  # what was printed before is not lost


def test_help_and_version() -> None:
    assert run("-m", "nemo_ibtpo.cli", "--version").stdout == f"{__version__}\n"
    result = run("-m", "nemo_ibtpo.cli")
    assert result.returncode == 0 and "train a model with a recipe" in result.stdout
    result = run("-m", "nemo_ibtpo.cli", "train", "--help")
    assert result.returncode == 0
    for text in ("examples:", "smollm2-135m", "sampler=independent", "actor.tensor_model_parallel_size=1"):
        assert text in result.stdout


def test_a_mistake_is_found_before_torch_is_imported() -> None:
    check = "import sys; from nemo_ibtpo import cli; cli.main(['train', 'recipe=x']); print('torch' in sys.modules)"
    assert run("-c", check).stdout == "False\n"


def _torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", *words)


def test_ranks_that_make_the_same_mistake_tell_it_once(recipe: str) -> None:
    result = _torchrun("-m", "nemo_ibtpo.cli", "train", recipe, "actor.tensor_model_parallel_size=2")
    assert result.returncode != 0
    assert result.stderr.count("nemo-ibtpo: error: ") == 1
    assert "nemo-ibtpo: error: 3 ranks cannot hold copies of a model on 2" in result.stderr


def test_a_mistake_that_only_another_rank_sees_is_told_by_that_rank(recipe: str, tmp_path: Path) -> None:
    body = "import os, time\nif os.environ['RANK'] == '2': raise UserError('no disk here')\ntime.sleep(60)"
    start = time.monotonic()
    result = _torchrun(program(tmp_path, body), "train", recipe)
    assert result.returncode != 0 and time.monotonic() - start < 50
    assert result.stderr.count("nemo-ibtpo: error: ") == 1
    assert "nemo-ibtpo: error: rank 2: no disk here" in result.stderr
    assert result.stdout.count("batch plan of 'mine'") == 1
