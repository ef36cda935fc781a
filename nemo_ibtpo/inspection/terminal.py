"""A tree on a terminal, for people on a login node."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as RichTree

from nemo_ibtpo.inspection.archive import StepTrees
from nemo_ibtpo.inspection.records import TreeRecord

_EXCERPT = 90
_BLOCKS = " ▁▂▃▄▅▆▇█"


def step_table(content: StepTrees) -> Table:
    """The trees of a step, numbered as ``--tree`` takes them."""
    table = Table(title=f"trees kept of step {content.step}", title_justify="left", expand=True)
    table.add_column("tree", justify="right")
    table.add_column("prompt", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    for heading in ("G", "steps", "tokens", "IB-Score"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, tree in enumerate(content.trees, start=1):
        table.add_row(
            str(number),
            Text(_one_line(tree.question)),
            f"{'' if tree.is_mixed else 'all '}{tree.mean_reward:.2f}",
            str(tree.trajectories),
            str(len(tree.nodes) - 1),
            f"{tree.unique_tokens:,} for {tree.duplicated_tokens:,}",
            f"{tree.mean_ib_score:+.3f}",
        )
    return table


def draw_tree(tree: TreeRecord) -> RenderableType:
    """The tree; a run of steps without a branch stays on one level, so that long trajectories need no width."""
    children: list[list[int]] = [[] for _ in tree.nodes]
    for index, node in enumerate(tree.nodes[1:], start=1):
        children[node.parent].append(index)
    root = RichTree(_line(tree, 0), guide_style="dim")
    waiting = [(0, root)]
    while waiting:
        parent, branch = waiting.pop()
        for first in children[parent]:
            lines, index = [_line(tree, first)], first
            while len(children[index]) == 1:
                (index,) = children[index]
                lines.append(_line(tree, index))
            waiting.append((index, branch.add(Group(*lines))))
    key = Text(
        "V value, IB IB-Score, A advantage, r round of a branch, x draws, R reward, pi confidence",
        style="dim",
    )
    return Group(Text(f"answer: {_one_line(tree.answer)}"), root, key)


def _line(tree: TreeRecord, index: int) -> Text:
    node = tree.nodes[index]
    line = Text(no_wrap=True, overflow="ellipsis")
    bar = _BLOCKS[round(node.value * (len(_BLOCKS) - 1))]
    line.append(f"{bar} V {node.value:.2f}", style="bold cyan" if node.value >= 0.5 else "bold yellow")
    for name, number in (("IB", node.ib_score), ("A", node.advantage)):
        if number is not None:
            line.append(f" {name} {number:+.2f}")
    if index and node.round > tree.nodes[node.parent].round:
        line.append(f" r{node.round}", style="bold magenta")
    if node.draws > 1:
        line.append(f" x{node.draws}")
    if node.reward is not None:
        line.append(f" R {node.reward:g} {node.finish_reason}", style="bold")
    line.append(f"  {_one_line(node.text)}  ")
    details = [f"{node.tokens} tok"]
    if node.confidence is not None:
        details.append(f"pi {node.confidence:.2f}")
    if index and node.advantage_global is not None and node.advantage_local is not None:
        details.append(f"A global {node.advantage_global:+.2f}, local {node.advantage_local:+.2f}")
    line.append(", ".join(details), style="dim")
    return line


def _one_line(text: str) -> str:
    """An excerpt without line feeds and without characters that a terminal would obey."""
    joined = " ".join(text.split())
    shown = "".join(character if character.isprintable() else "�" for character in joined)
    return shown if len(shown) <= _EXCERPT else f"{shown[: _EXCERPT - 1]}…"
