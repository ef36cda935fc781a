"""Whole training steps of a recipe and its GRPO twin on one GPU, as a user starts them: seconds of each phase.

Weights are random, in the shape of the recipe's model, and problems and rewards mean nothing. So many tokens end a
response that one in ``--mean-tokens`` does: lengths are then about geometric, up to ``rollout.max_new_tokens``.
Everything else is the recipe's, on one data-parallel rank.

    python benchmarks/whole_step.py                                  # a GPU with vLLM, 6 minutes
    python benchmarks/whole_step.py --sides ibtpo window_4 --prompts 8

The last line is JSON: for each side the median over the steps behind the first of every ``time/..._s`` and of
``perf/step_s``, of sampled tokens, of tokens a second, and the peak of the GPU's memory. ``nemo-ibtpo plan`` predicts
the same of the recipe with ``trainer.num_prompts_per_step`` of ``--prompts``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import torch
from measure import describe
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast
from workloads import SMALL_SHAPE, model_card, write_random_model

from nemo_ibtpo.reporting.metrics import read_metrics

RECIPE = "{}-qwen3-1.7b-base-1n8g-tp1pp1"
CARD = "Qwen3-1.7B-Base"
SIDES = {
    "grpo": ("grpo", []),
    "ibtpo": ("ibtpo", []),
    "window_4": ("ibtpo", ["sampler.max_sequences_per_tree=4"]),
}
_STEP_TOKENS = 64  # about: one word in so many ends a line
_REWARD = "def reward(response, answer):\n    return float(len(response) % 2)\n"


def write_job(directory: Path, shape: PretrainedConfig, mean_tokens: int) -> None:
    """Model, tokenizer, problems and reward."""
    model = directory / "model"
    write_random_model(shape, model)
    words = {f"w{i}" + "\n\n" * (i % _STEP_TOKENS == 1): i for i in range(2, shape.vocab_size)}
    core = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1} | words, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>").save_pretrained(model)
    ends = max(1, round(shape.vocab_size / mean_tokens))
    spread = [i * shape.vocab_size // ends // _STEP_TOKENS * _STEP_TOKENS for i in range(ends)]
    GenerationConfig(eos_token_id=sorted(set(spread))).save_pretrained(model)
    rows = [{"question": " ".join(f"w{i + 3 + 64 * j}" for j in range(6)), "answer": "1"} for i in range(40)]
    for name, own in (("train", rows[4:]), ("validation", rows[:4])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (directory / "reward.py").write_text(_REWARD)


def rows_of(command: list[str], output: Path, steps: int) -> list[dict[str, float]]:
    """The metrics of a run's first steps. It is ended there: what is saved at an end takes longer than a step.

    Raises:
        SystemExit: it ended before.
    """
    file = output / "metrics.jsonl"
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        while True:
            rows = read_metrics(file) if file.exists() else []
            if rows and rows[-1]["step"] >= steps:
                return rows
            if process.poll() is not None:
                for log in output.glob("vllm/*.log"):
                    print(log.read_text(errors="replace")[-6000:], file=sys.stderr)
                raise SystemExit(f"whole_step: {output.name} ended with exit status {process.returncode}, see above")
            time.sleep(0.2)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def train(side: str, directory: Path, options: argparse.Namespace, extra: list[str]) -> dict[str, float]:
    """Train so many steps; medians of those behind the first."""
    twin, changes = SIDES[side]
    settings = [
        f"recipe={RECIPE.format(twin)}",
        f"output_dir={directory}/{side}",
        f"model.path={directory}/model",
        f"data.train.path={directory}/train.jsonl",
        f"data.validation.path={directory}/validation.jsonl",
        "data=jsonl",
        "data.template=plain",
        "data.prompt_format='{question}'",
        f"reward.function={directory}/reward.py:reward",
        f"rollout.max_new_tokens={options.max_new_tokens}",
        f"trainer.num_prompts_per_step={options.prompts}",
        f"trainer.num_prompts_per_update={options.prompts}",
        "trainer.max_steps=100",
        "trainer.val_period=0",
        "trainer.export_period=0",
        "checkpoint.save_period=0",
        "logger.tensorboard=false",
        "logger.trees.period=0",
        *changes,
        *extra,
    ]
    began = time.perf_counter()
    rows = rows_of(
        [sys.executable, "-m", "nemo_ibtpo.cli", "train", *settings], directory / side, options.repetitions + 1
    )
    wall = time.perf_counter() - began
    wanted = (
        "time/",
        "perf/",
        "mismatch/token",
        "train/sampled_tokens",
        "train/unique",
        "train/duplicated",
        "train/trajectories",
    )
    names = [name for name in rows[-1] if name.startswith(wanted)]
    counted = [row for row in rows if row["step"] > 1]
    start_s = wall - sum(row.get("perf/step_s", 0.0) for row in rows)
    return {name: median(row[name] for row in counted) for name in names} | {"start_s": start_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--prompts", type=int, default=8, help="a step, as of one of the recipe's eight ranks")
    parser.add_argument("--repetitions", type=int, default=2, help="steps, after one that is not counted")
    parser.add_argument("--mean-tokens", type=int, default=512, help="of a response")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of every side")
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extra, shape = options.set, AutoConfig.from_pretrained(str(model_card(CARD)))
    if options.tiny:
        options.prompts, options.max_new_tokens, options.mean_tokens, shape = 2, 24, 16, SMALL_SHAPE
        extra = [
            *extra,
            "rollout=transformers",
            "model.dtype=fp32",
            "data.max_prompt_tokens=32",
            "sampler.min_new_tokens=4",
        ]
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_job(Path(scratch), shape, options.mean_tokens)
        for side in options.sides:
            figures = train(side, Path(scratch), options, extra)
            result[side] = {name: float(f"{value:.4g}") for name, value in figures.items()}
            print(f"{side}: {result[side]}", flush=True)
    print(json.dumps(result | {"prompts": options.prompts, "device": describe(device)}), flush=True)


if __name__ == "__main__":
    main()
