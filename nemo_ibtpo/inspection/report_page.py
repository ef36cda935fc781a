"""One HTML file about one or several runs: curves, prompts, trees.

Invariants (tested by ``tests/unit/inspection/test_report_page.py`` and ``tests/e2e/test_report_in_browser.py``):

- It opens from a disk, without a network and a server. A content security policy allows the one script and the one
  style in it, by their hashes, and nothing else.
- What comes from data or a model is JSON with every ``<`` escaped, or base64; the script shows it as text.
- Trees lie in the page as they lie on the disk, and are unpacked when they are looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from nemo_ibtpo.files import write_atomically
from nemo_ibtpo.inspection.archive import StepTrees
from nemo_ibtpo.inspection.run_data import RunData, evenly
from nemo_ibtpo.reporting.metric_table import find_metric

_SCRIPTS = ("core.js", "scales.js", "curves.js", "prompts.js", "tree.js", "main.js")
_NOT_METRICS = ("step", "non_finite")


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a report.

    Attributes:
        trees: trees that can be looked at in it.
        left_out: steps, over all runs, whose trees are on the disk but found no room.
    """

    trees: int
    left_out: int


def write_report(runs: Sequence[RunData], path: Path, most_tree_bytes: int) -> Written:
    """Write the report of runs, complete or not at all.

    Args:
        runs: at least one.
        path: of the file.
        most_tree_bytes: room for the trees of all runs, as they are packed on the disk.

    Raises:
        UserError: a file of trees is damaged.
    """
    described, pages, trees, left_out = [], [], 0, 0
    questions: dict[str, tuple[str, str]] = {}
    for number, run in enumerate(runs):
        sizes = {step: run.archive.path(step).stat().st_size for step in run.archive.steps()}
        steps = evenly(list(sizes), sizes, most_tree_bytes // len(runs))
        content = [run.archive.read(step) for step in steps]
        for step in steps:
            packed = base64.b64encode(run.archive.path(step).read_bytes()).decode()
            pages.append(f'<script type="text/plain" id="trees-{number}-{step}">{packed}</script>')
        questions |= run.questions
        questions |= {tree.prompt_id: (tree.question, tree.answer) for one in content for tree in one.trees}
        described.append(_describe(run, content, omitted=len(sizes) - len(steps)))
        trees += sum(len(one.trees) for one in content)
        left_out += len(sizes) - len(steps)
    names = dict.fromkeys(name for run in described for name in run["columns"])
    data = {
        "runs": described,
        "prompts": {key: {"question": question, "answer": answer} for key, (question, answer) in questions.items()},
        "metrics": {
            name: {"unit": metric.unit, "meaning": metric.meaning}
            for name in names
            if (metric := find_metric(name)) is not None
        },
    }
    static = resources.files("nemo_ibtpo.inspection") / "static"
    script = '"use strict";\n' + "\n".join((static / name).read_text("utf-8") for name in _SCRIPTS)
    style = (static / "report.css").read_text("utf-8")
    page = Template((static / "report.html").read_text("utf-8")).substitute(
        title=escape(f"nemo_ibtpo: {', '.join(run.label for run in runs)}"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_as_json(data),
        pages="\n".join(pages),
    )
    write_atomically(path, page)
    return Written(trees, left_out)


def _describe(run: RunData, content: Sequence[StepTrees], omitted: int) -> dict[str, Any]:
    names = dict.fromkeys(name for row in run.rows for name in row if name not in _NOT_METRICS)
    return {
        "label": run.label,
        "config": run.config,
        "max_steps": run.config.get("trainer.max_steps"),
        "steps": [row["step"] for row in run.rows],
        # A step that did not log a metric has no entry, which is not the same as a value that is not finite.
        "columns": {name: {str(i): row[name] for i, row in enumerate(run.rows) if name in row} for name in names},
        "trees": [
            {
                "step": one.step,
                "trees": [
                    {
                        "prompt": tree.prompt_id,
                        "reward": tree.mean_reward,
                        "mixed": tree.is_mixed,
                        "ib": tree.mean_ib_score,
                        "unique": tree.unique_tokens,
                    }
                    for tree in one.trees
                ],
            }
            for one in content
        ],
        "omitted": omitted,
        "held_out": {name: asdict(problem) for name, problem in run.held_out.items()},
    }


def _as_json(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
