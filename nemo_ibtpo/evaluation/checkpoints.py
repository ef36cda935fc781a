"""Several checkpoints of a run on the same benchmarks, and the curve through them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.evaluation.summary import Figure, figures
from nemo_ibtpo.files import write_atomically
from nemo_ibtpo.reporting.curves import draw_curves
from nemo_ibtpo.reporting.tables import Table

FILE_NAME, PNG = "curve.json", "curve.png"
_STEP = re.compile(r"(\d+)$")


def write_curve(results: Mapping[int, Sequence[EvaluationResult]], directory: Path) -> Table:
    """Write ``curve.json`` and ``curve.png``.

    Args:
        results: of every benchmark, by the step of the checkpoint.
        directory: to write to.

    Returns:
        One row a step, one column a benchmark: the mean over samples, with its 95 % interval over problems.
    """
    found = {
        step: {result.settings["benchmark"]: figures(result)[0] for result in own}
        for step, own in sorted(results.items())
    }
    content = {
        str(step): {benchmark: asdict(figure) for benchmark, figure in own.items()} for step, own in found.items()
    }
    write_atomically(directory / FILE_NAME, json.dumps(content, indent=2) + "\n")
    names = {f"{benchmark} {figure.name}": benchmark for benchmark, figure in next(iter(found.values())).items()}
    rows = [{"step": step, **{name: own[of].value for name, of in names.items()}} for step, own in found.items()]
    draw_curves(rows, list(names)).savefig(directory / PNG, dpi=120)
    return Table(["step", *names], [[str(step), *_cells(own)] for step, own in found.items()])


def _cells(own: Mapping[str, Figure]) -> list[str]:
    return [str(figure) for figure in own.values()]


def checkpoints_of(pattern: str) -> dict[int, Path]:
    """The model directories that a pattern such as ``runs/demo/hf_step_*`` names, by the number that each ends with.

    Raises:
        UserError: there is none, or the name of one does not end with the step.
    """
    root = Path(pattern).anchor or "."
    paths = [path for path in Path(root).glob(pattern.removeprefix(Path(pattern).anchor)) if path.is_dir()]
    if not paths:
        raise UserError(f"model.path={pattern}: no directory has such a name")
    steps: dict[int, Path] = {}
    for path in sorted(paths):
        number = _STEP.search(path.name)
        if number is None or int(number[1]) in steps:
            raise UserError(
                f"model.path={pattern}: {path} does not end with a step of its own; name checkpoints of one run, "
                "such as runs/demo/hf_step_* or runs/demo/checkpoints/step_*"
            )
        steps[int(number[1])] = path
    return dict(sorted(steps.items()))
