"""``nemo-ibtpo study gradient`` from beginning to end on the model that learned easy sums, cut short and continued.

Everything is real: reasoning-gym, the embedded engine, growth, verification, autograd. Not exercised: figures that
tell anything about methods, which take minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from easy_sums import EASY_SUMS

from nemo_ibtpo.cli import main

SETTINGS = """
num_prompts: 3
dataset: train
reference_trajectories: 16
repetitions: 2
sketch_size: 101
compared_with: grpo
arms:
  grpo: [method=grpo, sampler.initial_rollouts=4]
  ib: [method=ibtpo, sampler.rounds=3]
  ib_lambda_0: [method=ibtpo, sampler.rounds=3, method.ib_coef=0]
"""


def test_a_study_that_was_cut_short_ends_as_an_undisturbed_one(
    tiny_base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)

    def study(name: str) -> Path:
        words = [f"model.path={tiny_base_model}", f"output_dir={tmp_path / name}", "rollout=transformers", *EASY_SUMS]
        assert main(["study", "gradient", "--settings", str(tmp_path / "settings.yaml"), "recipe=tiny", *words]) == 0
        return tmp_path / name / "gradient_study"

    whole = study("whole")
    rows = json.loads((whole / "summary.json").read_text())
    assert [row["arm"] for row in rows] == ["grpo", "ib", "ib_lambda_0"]
    assert rows[0]["error_ratio"] is None and rows[1]["error_ratio"]["mean"] > 0
    assert rows[1]["tokens"] == rows[2]["tokens"] != rows[0]["tokens"], "arms that sample alike share their trees"
    assert rows[1]["error"] != rows[2]["error"]
    assert "| ib_lambda_0 |" in (whole / "summary.md").read_text()
    assert (whole / "errors.png").read_bytes().startswith(b"\x89PNG")

    lines = (whole / "gradients.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 * (1 + 3)
    cut = tmp_path / "cut" / "gradient_study"
    cut.mkdir(parents=True)
    (cut / "settings.json").write_bytes((whole / "settings.json").read_bytes())
    (cut / "gradients.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    study("cut")
    assert "5 gradients are in" in capsys.readouterr().out
    again = json.loads((cut / "summary.json").read_text())
    for row, same in zip(rows, again, strict=True):
        assert row["tokens"] == same["tokens"]
        assert row["error"]["mean"] == pytest.approx(same["error"]["mean"], rel=1e-3)
