"""A benchmark of one's own is a file like the shipped ones; large recipes name the command that evaluates them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose_evaluation
from nemo_ibtpo.config.paths import recipe_names, recipes_dir

MINE = """\
# @package _global_
benchmark: {name: mine, data: {source: jsonl, path: p.jsonl, split: null}, samples_per_problem: 2}
rollout: {max_new_tokens: 64}
"""
WORDS = ["model.path=m", "output_dir=o"]


def test_a_file_is_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    config = compose_evaluation(str(tmp_path / "mine.yaml"), [*WORDS, "benchmark.samples_per_problem=3"])
    assert (config.benchmark.name, config.benchmark.data.path) == ("mine", "p.jsonl")
    assert (config.benchmark.samples_per_problem, config.rollout.max_new_tokens) == (3, 64)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("math500", MINE, "math500 is the name of a shipped benchmark; rename the file"),
        ("mine", MINE.replace("samples_per", "sampels_per"), "unknown key 'benchmark.sampels_per_problem'"),
        ("mine", "- x", "is no mapping of keys to values"),
        ("mine", None, "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    file = tmp_path / f"{name}.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        compose_evaluation(str(file), WORDS)
    assert message in str(caught.value)


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if re.search("7[02]b", name)])
def test_a_large_recipe_names_its_evaluation(recipe: str) -> None:
    header = (recipes_dir() / f"{recipe}.yaml").read_text().partition("defaults:")[0]
    command = " ".join(line.strip("# \\") for line in header.splitlines() if "=" in line)
    words = [word for word in command.partition("slurm/eval.sh ")[2].split() if not word.startswith("benchmark=")]
    config = compose_evaluation("math500", words)
    assert config.model.path == f"runs/{recipe}/hf"
    assert config.rollout.tensor_parallel_size == 4
