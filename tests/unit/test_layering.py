"""Who may import whom, so that a newcomer can read a room without the rest of the house.

Looks at the import statements of every module. Not exercised: imports by other means.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_ibtpo

PACKAGE = Path(nemo_ibtpo.__file__).parent
# Typed settings and the user-facing error; how helper processes are started; what all ranks tell each other; small
# helpers.
ANYWHERE = {"config", "signals", "collectives", "files", "dtypes"}
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "tree": set(),
    "methods": {"tree", "losses"},
    "losses": set(),
    "data": set(),
    "rewards": {"data"},
    "rollout": {"tree"},
    "megatron": {"tree", "losses"},
    "evaluation": {"tree", "data", "reporting"},
    "reporting": set(),
    "checkpoints": set(),
    "conversion": {"megatron", "checkpoints", "reporting", "tree"},
    "inspection": {"tree", "methods", "data", "evaluation", "reporting"},
    "launch": {"checkpoints", "data"},  # whether the files of a run are there
    "planning": {"rollout", "tree"},  # the plan of the weights' transport; growth on simulated engines
    "training": {
        "checkpoints",
        "data",
        "evaluation",
        "inspection",
        "losses",
        "megatron",
        "methods",
        "reporting",
        "rewards",
        "rollout",
        "tree",
    },
    "nemo": {"checkpoints"},
    "experiments": {
        "checkpoints",
        "data",
        "evaluation",
        "inspection",
        "losses",
        "methods",
        "planning",
        "reporting",
        "rewards",
        "rollout",
        "training",
        "tree",
    },
}
# These join what they need.
JOINS = {
    "evaluation/evaluation.py",
    "config/loader.py",  # a method, found by its import path, says what its keys are
    "config/validation.py",
    "config/carry_over.py",  # what the trees in flight need
}
# Start what the user asks for, and may therefore import anything; heavy libraries only where they are used.
COMMANDS = "commands"


def imported_rooms(file: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.append(node.module or "")
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "nemo_ibtpo" and len(part) > 1}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_its_neighbours(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        if str(file.relative_to(PACKAGE)) in JOINS:
            continue
        beyond = imported_rooms(file) - ALLOWED[room] - ANYWHERE - {room}
        assert not beyond, f"{file.relative_to(PACKAGE)} imports {sorted(beyond)}"


def test_every_room_has_a_rule() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {*ALLOWED, COMMANDS}


def test_importing_the_package_needs_no_heavy_library() -> None:
    heavy = "torch", "megatron", "vllm", "transformers"
    program = (
        "import sys, nemo_ibtpo, nemo_ibtpo.cli, nemo_ibtpo.tree.growth, nemo_ibtpo.tree.microbatches\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_need_no_heavy_library() -> None:
    program = (
        "import sys, nemo_ibtpo\n"
        "from nemo_ibtpo import *\n"
        "assert set(nemo_ibtpo.__all__) <= set(dir(nemo_ibtpo)) & set(globals())\n"
        "tree = Tree('p', [1]); tree.insert(0, [([2], [-1.0])], 'eos', round=0)\n"
        "assert tree.num_trajectories == 1 and issubclass(UserError, Exception)\n"
        "print([name for name in ('torch', 'megatron', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
