"""Each command of docs/guides runs, with a small model and small files in the place of those it names.

Commands that start a large model are composed and checked (``--dry-run``).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny_job import write_tiny_job

from nemo_ibtpo.cli import main
from nemo_ibtpo.reporting.metric_table import undocumented

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
SMALL = {
    "eval": [
        "benchmark.max_prompt_tokens=8",
        "rollout.max_new_tokens=24",
        "benchmark.template=plain",
        "model.dtype=fp32",
    ],
    "train": ["trainer.max_steps=1", "trainer.val_period=0", "probe.num_prompts=0"],
    "data": [],
}


def commands() -> list[str]:
    found = []
    for guide in sorted(GUIDES.glob("*.md")):
        lines = guide.read_text().replace("\\\n", " ").splitlines()
        found += [line.strip() for line in lines if re.match(r"    (nemo-ibtpo|torchrun) ", line)]
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the guides name, entered."""
    recipe = write_tiny_job(tmp_path / "job")
    (tmp_path / "job.yaml").write_text(recipe.read_text())
    rows, others = (
        "".join(f'{{"question": "{n} 0 {n}", "answer": "1", "level": {n}}}\n' for n in numbers)
        for numbers in (range(12), range(20, 29))
    )
    (tmp_path / "job" / "train.jsonl").write_text(rows)
    (tmp_path / "problems.jsonl").write_text(others)
    (tmp_path / "job" / "validation.jsonl").write_text('{"question": "40 0 40", "answer": "1", "level": 1}\n' * 1)
    (benchmark,) = re.findall(r"```yaml\n(.*?)```", (GUIDES / "evaluate.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(benchmark)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_a_command_of_a_guide_runs(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(re.sub(r"^torchrun .* -m nemo_ibtpo\.cli|^nemo-ibtpo", "", command))
    words = [re.sub(r"=/models/\w+$", f"={place}/job/model", word) for word in words]
    more = SMALL[words[0]]
    if words[0] == "eval" and "--dry-run" not in words:
        more = [*more, "--dry-run"]
    assert main([*words, *more]) == 0, capsys.readouterr().err


def test_the_parts_of_the_guide_train(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (GUIDES / "reward.md").read_text(), re.DOTALL)
    text = (place / "job.yaml").read_text().replace("reward: {num_workers: 1}", block)
    assert set(yaml.safe_load(block)["reward"]["parts"]) == {"right", "format", "short"}
    (place / "job.yaml").write_text(text)
    assert main(["train", "recipe=job.yaml", *SMALL["train"]]) == 0, capsys.readouterr().err
    metrics = (place / "job" / "out" / "metrics.jsonl").read_text().splitlines()[-1]
    assert all(f'"reward/{name}"' in metrics for name in ("right", "format", "short"))


def test_the_mixture_of_the_guide_trains(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (GUIDES / "data.md").read_text(), re.DOTALL)
    recipe = yaml.safe_load((place / "job.yaml").read_text())
    recipe["data"] |= yaml.safe_load(block)["data"]
    (place / "job.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["data", "check", "recipe=job.yaml"]) == 0, capsys.readouterr().err
    assert "weight 3: 75.0% of the prompts; an epoch in 3.2 steps" in capsys.readouterr().out
    assert main(["train", "recipe=job.yaml", *SMALL["train"]]) == 0, capsys.readouterr().err
    first, last = (json.loads(line) for line in (place / "job" / "out" / "metrics.jsonl").read_text().splitlines())
    assert (last["train/source_short_prompts"], last["train/source_long_prompts"]) == (4.0, 1.0)
    assert 0.0 <= last["train/source_short_avg_rate"] <= 1.0
    assert first["val/source_held_out_accuracy"] == first["val/accuracy"]
    assert not undocumented(list(last))
