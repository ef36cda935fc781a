"""A method of the user's own works by its import path: one Python file, no change to the package.

The program of docs/methods.md is written to a file, chosen on the command line of a real training job (one rank, the
embedded engine), and trains. Not exercised: that it learns better.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_job import write_tiny_job

from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.reporting.metrics import read_metrics

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()


def block(language: str) -> str:
    """The first block of that language on the page."""
    found = re.search(f"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def train(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nemo_ibtpo.cli", "train", f"recipe={directory / 'job.yaml'}", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own")
    write_tiny_job(directory)
    (directory / "my_package").mkdir()
    (directory / "my_package" / "__init__.py").write_text(block("python"))
    (directory / "method").mkdir()
    (directory / "method" / "dots.yaml").write_text(block("yaml"))
    return directory


def test_a_method_by_its_import_path_trains(directory: Path) -> None:
    words = ["trainer.max_steps=2", "trainer.val_period=0", "probe.num_prompts=0", "checkpoint.save_period=0"]
    done = train(directory, "method.class=my_package.DoTS", "method.discount=0.5", *words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows = read_metrics(directory / "out" / "metrics.jsonl")
    trained = [row for row in rows if "train/grad_norm" in row]
    assert trained
    assert all(row["train/grad_norm"] > 0 for row in trained)
    assert all(row["train/dots_bonus"] > 0 for row in trained)  # what its term of the loss reports
    archive, checked = TreeArchive(directory / "out"), 0
    for tree in (tree for step in archive.steps() for tree in archive.read(step).trees):
        depths = [-1]
        for node in tree.nodes[1:]:
            depths.append(depths[node.parent] + 1)
            if node.advantage:  # of a tree that was trained on
                expected = (node.value - tree.nodes[0].value) * 0.5 ** depths[-1]
                assert node.advantage == pytest.approx(expected, abs=1e-4)
                checked += 1
    assert checked


def test_a_yaml_file_beside_the_recipe_is_a_choice(directory: Path) -> None:
    done = train(directory, "method=dots", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "method DoTS" in done.stdout
    done = train(directory, "method=dots", "method.discount=2", "--dry-run")
    assert "method.discount=2: input should be less than or equal to 1" in done.stderr
    done = train(directory, "method=dots", "sampler=independent", "sampler.rounds=1", "--dry-run")
    assert "DoTS compares first steps" in done.stderr
