"""``nemo-ibtpo inspect RUN [RUN ...]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_ibtpo.config.errors import UserError

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers

_EXAMPLES = """\
examples:
  nemo-ibtpo inspect runs/demo                          # writes runs/demo/report.html
  nemo-ibtpo inspect runs/a runs/b --output both.html   # curves of both, and what differs
  nemo-ibtpo inspect runs/demo --terminal               # the trees of the last step
  nemo-ibtpo inspect runs/demo --terminal --step 10 --tree 3
"""


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``inspect``."""
    inspect = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="look at runs: an HTML report with curves and trees, or a tree on the terminal",
        description="Write a report of one or several runs as one HTML file that needs no network and no server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run, running or ended")
    inspect.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the file to write (default: report.html in the run, comparison.html in the first of several)",
    )
    inspect.add_argument(
        "--tree-mib",
        type=float,
        default=64.0,
        metavar="X",
        help="most MiB of packed trees in the report; of more, steps spread evenly are taken (default: %(default)g)",
    )
    inspect.add_argument("--terminal", action="store_true", help="show a tree here instead of writing a report")
    inspect.add_argument("--step", type=int, metavar="N", help="with --terminal: the step (default: the last)")
    inspect.add_argument("--tree", type=int, metavar="N", help="with --terminal: the tree, from 1 (default: a list)")


def run(arguments: argparse.Namespace) -> None:
    """Write the report, or show a tree."""
    for directory in arguments.runs:
        if not directory.is_dir():
            raise UserError(f"{directory}: there is no such directory; give the output_dir of a run")
    if arguments.terminal:
        _show(arguments)
        return
    for option in ("step", "tree"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} goes with --terminal; the report holds all of them")
    if not arguments.tree_mib > 0:
        raise UserError(f"--tree-mib {arguments.tree_mib:g}: it must be above 0")
    from nemo_ibtpo.inspection.report_page import write_report
    from nemo_ibtpo.inspection.run_data import read_runs
    from nemo_ibtpo.reporting.progress import RunConsole

    name = "report.html" if len(arguments.runs) == 1 else "comparison.html"
    path = arguments.output or arguments.runs[0] / name
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}")
    console = RunConsole(0)
    written = write_report(read_runs(arguments.runs), path, int(arguments.tree_mib * 2**20))
    size = path.stat().st_size / 2**20
    console.say(f"wrote {path}: {written.trees:,} trees, {size:.1f} MiB; open it in a browser")
    if written.left_out:
        console.say(
            f"the trees of {written.left_out} steps found no room in it (--tree-mib {arguments.tree_mib:g}); "
            "they are on the disk, and --terminal shows them"
        )


def _show(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) != 1 or arguments.output is not None:
        raise UserError("--terminal shows trees of one run and takes no --output")
    from rich.console import Console

    from nemo_ibtpo.inspection.archive import TreeArchive
    from nemo_ibtpo.inspection.terminal import draw_tree, step_table

    archive = TreeArchive(arguments.runs[0])
    steps = archive.steps()
    if not steps:
        raise UserError(f"{archive.directory} holds no trees: logger.trees.period was 0, or no step was trained yet")
    content = archive.read(steps[-1] if arguments.step is None else arguments.step)
    console = Console(highlight=False)
    if arguments.tree is None:
        console.print(step_table(content))
        kept = ", ".join(map(str, steps))
        console.print(f"steps with trees: {kept}; --step N chooses one, --tree N shows a tree", soft_wrap=True)
        return
    if not 1 <= arguments.tree <= len(content.trees):
        raise UserError(f"--tree {arguments.tree}: step {content.step} has the trees 1 to {len(content.trees)}")
    console.print(draw_tree(content.trees[arguments.tree - 1]))
