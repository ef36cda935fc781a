"""An installed wheel carries the defaults and the recipes and works far from the repository.

Why this matters: everything else here runs from a checkout, where ``conf/`` and ``recipes/`` lie beside the package;
in a wheel they lie inside it. The wheel goes into an environment of its own; only its dependencies come from the
environment that runs the tests. Not exercised: that pip resolves the dependencies, which ``make setup`` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from model_directories import write_model_directory

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*words: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the programs in an environment that holds the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, REPOSITORY)
    run(*build, cwd=directory)
    (wheel,) = directory.glob("*.whl")
    home = directory / "environment"
    venv.create(home, with_pip=False)
    scripts = home / "bin"
    install = ("-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index", "--quiet", wheel)
    run(sys.executable, *install, cwd=directory)
    paths = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory)
    # A .pth file appends: what the wheel brought is found first. The .pth files over there are not read, so that the
    # checkout of an editable installation does not come along.
    (Path(paths.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return scripts


def test_dry_run_outside_the_repository(scripts: Path, tmp_path: Path) -> None:
    where = run(scripts / "python", "-c", "import nemo_ibtpo; print(nemo_ibtpo.__file__)", cwd=tmp_path)
    assert where.startswith(str(scripts.parent))
    model = write_model_directory(tmp_path / "model")
    plan = run(scripts / "nemo-ibtpo", "train", "recipe=tiny", f"model.path={model}", "--dry-run", cwd=tmp_path)
    assert "batch plan of 'tiny'" in plan
    assert "4 ranks = 2 tensor x 2 pipeline x 1 data parallel" in plan
    assert "dry run for 4 ranks: nothing was started" in plan


def test_the_report_has_its_script_and_style(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/avg_rate": 0.5}\n')
    assert "report.html" in run(scripts / "nemo-ibtpo", "inspect", tmp_path, cwd=tmp_path)


def test_help_finds_recipes_and_defaults(scripts: Path, tmp_path: Path) -> None:
    text = run(scripts / "nemo-ibtpo", "train", "--help", cwd=tmp_path)
    assert "smollm2-135m" in text and "sampler=independent" in text and "ib_score.beta=5.0" in text
