"""What both demos do: make a model, train it with a recipe, show what came of it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import model_parallel_ranks
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.experiments.base_models.imitation import load_settings, make_base_model
from nemo_ibtpo.experiments.base_models.smollm2 import export
from nemo_ibtpo.experiments.demo.summary import as_table, summarise
from nemo_ibtpo.inspection.report_page import write_report
from nemo_ibtpo.inspection.run_data import read_runs
from nemo_ibtpo.reporting.curves import plot_curves
from nemo_ibtpo.reporting.metrics import FILE_NAME, read_metrics
from nemo_ibtpo.reporting.progress import RunConsole

MakeModel = Callable[[Path, RunConfig, RunConsole], bool]

_CURVES = (
    "val/accuracy",
    "train/avg_rate",
    "train/eff_rate",
    "train/ib_score",
    "train/cov",
    "train/unique_tokens_per_prompt",
)
_SUMMARY, _PNG, _REPORT = "summary.json", "curves.png", "report.html"
_MOST_TREE_BYTES = 64 * 2**20
# Recipe and base model of each demo.
DEMOS: Mapping[str, tuple[str, MakeModel]] = {
    "small": (
        "tiny",
        lambda directory, config, console: make_base_model(directory, load_settings(), config.data, console),
    ),
    "smollm2": ("smollm2-135m", lambda directory, config, console: export(directory, console)),
}
# One thread a rank, because the ranks share the cores; the other is what Megatron asks for with sequence parallelism.
_RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def main(argv: Sequence[str]) -> int:
    """Run a demo from its command line; the exit status: 0 done, 2 a ``UserError`` in one line, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_ibtpo.experiments.demo",
        description="Make a small base model and train it with IB-TPO.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", choices=sorted(DEMOS), default="small", help="what is trained (default: small)")
    parser.add_argument("--output-dir", metavar="DIR", help="where everything is written (default: the recipe's)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: the recipe's)")
    parser.add_argument("--model-only", action="store_true", help="make the base model and train nothing")
    arguments = parser.parse_args(argv)
    overrides = []
    if arguments.output_dir is not None:
        overrides += [f"output_dir='{arguments.output_dir}'", f"model.path='{arguments.output_dir}/base_model'"]
    if arguments.steps is not None:
        overrides.append(f"trainer.max_steps={arguments.steps}")
    try:
        run(*DEMOS[arguments.model], overrides, model_only=arguments.model_only)
    except UserError as error:
        print(f"demo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _engine_overrides(overrides: Sequence[str], console: RunConsole) -> list[str]:
    """The recipe samples with vLLM; where that is not installed, and nothing else was asked for, say so and go on."""
    if find_spec("vllm") is not None or any(word.startswith(("rollout=", "rollout.engine=")) for word in overrides):
        return []
    console.say("vLLM is not installed here: the embedded engine samples (rollout=transformers)")
    return ["rollout=transformers"]


def run(recipe: str, make_model: MakeModel, overrides: Sequence[str], *, model_only: bool = False) -> None:
    """Make the model, train it unless it is all that is wanted, and leave ``summary.json``, ``curves.png``,
    ``metrics.jsonl``, ``report.html`` and ``hf/``.

    Raises:
        UserError: a part failed.
    """
    transformers_logging.disable_progress_bar()
    console = RunConsole(0)
    overrides = [*_engine_overrides(overrides, console), *overrides]
    config = compose(recipe, overrides)
    output, model_path, ranks = Path(config.output_dir), Path(config.model.path), model_parallel_ranks(config)
    validate(config, "study", ranks)  # before minutes of work; the run checks the model too, which is made first

    console.say(f"[1/3] model to start from: {model_path}")
    started = time.perf_counter()
    made = make_model(model_path, config, console)
    console.say(f"made in {time.perf_counter() - started:.0f} s" if made else "there already, made of the same")
    if model_only:
        return

    actor = config.actor
    console.say(
        f"[2/3] {config.trainer.max_steps} steps of IB-TPO on {ranks} ranks: "
        f"TP{actor.tensor_model_parallel_size} x PP{actor.pipeline_model_parallel_size}, "
        f"rollouts by {config.rollout.engine}"
    )
    # A demo starts from nothing, so that what is there belongs to this run.
    for name in (FILE_NAME, _SUMMARY, _PNG, _REPORT, "status.json"):
        (output / name).unlink(missing_ok=True)
    for name in ("checkpoints", "trees", "validation"):
        shutil.rmtree(output / name, ignore_errors=True)
    started = time.perf_counter()
    train(recipe, overrides, ranks)
    seconds = time.perf_counter() - started
    console.say(f"trained in {seconds:.0f} s")

    console.say("[3/3] results")
    summary = summarise(read_metrics(output / FILE_NAME), seconds)
    summary.write(output / _SUMMARY)
    plot_curves(output / FILE_NAME, output / _PNG, _CURVES)
    Console().print(as_table(summary, f"recipe {recipe}"))
    rise = summary.final_accuracy - summary.base_accuracy
    console.say(
        f"accuracy changed by {100 * rise:+.1f} points; the intervals "
        + ("do not overlap: a clear rise" if summary.rises_clearly else "do not show a clear rise")
    )
    for name in (_SUMMARY, FILE_NAME, _PNG, "hf"):
        console.say(f"wrote {output / name}")
    write_report(read_runs([output]), output / _REPORT, _MOST_TREE_BYTES)
    console.say(f"report with curves and trees, to open in a browser: {output / _REPORT}")


def train(recipe: str, overrides: Sequence[str], num_ranks: int) -> None:
    """Run ``nemo-ibtpo train recipe=<recipe> <overrides>`` under torchrun, as a user would, and wait for its ranks.

    The ranks write to this process's standard output and error.

    Raises:
        UserError: the run ended with an error, which it has printed.
    """
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [sys.executable, "-m", *torchrun, "-m", "nemo_ibtpo.cli", "train", f"recipe={recipe}", *overrides]
    with subprocess.Popen(command, env=os.environ | _RANK_ENVIRONMENT) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has interrupted torchrun too; it ends its ranks
            raise
    if status:
        raise UserError(f"training ended with exit status {status}; the reason is above: {' '.join(command)}")
