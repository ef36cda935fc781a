"""The pre-flight tells nodes that fit together from nodes that do not.

Why it matters: what it lets pass fails hours later, or trains on mixed code. Real: torchrun, two agents as two nodes,
gloo, files. Nodes with GPUs or other versions are made up, for the rule that compares them (``problems_of``).

The probe of a GPU runs on a CPU, with a compiler and without one.

Not exercised: exclusive compute mode, NCCL, a network that swallows packets, a network file system.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_ibtpo.launch.gpu_probe import try_second_process
from nemo_ibtpo.launch.preflight import Node, problems_of

NODE = Node("a", 2, ("H100", "H100"), 4096, {"torch": "2.13.0"})


def start(endpoint: str, directory: Path) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    program = ["-m", "nemo_ibtpo.launch.preflight", "--directory", str(directory), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, *torchrun, f"--rdzv-endpoint={endpoint}", *program],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_two_nodes(tmp_path: Path, shared: bool, free_port: int) -> None:
    places = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
    for place in places:
        place.mkdir(exist_ok=True)
    agents = [start(f"127.0.0.1:{free_port}", place) for place in places]
    texts = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0 if shared else 1] * 2, texts
    (report,) = [path.read_text() for place in set(places) for path in place.glob("preflight.txt")]
    assert ("problem: " in report) is not shared
    assert "all-reduce of 64 MiB over gloo: right" in report
    assert ("does not see the files" in report) is not shared
    assert sorted(path.name for place in set(places) for path in place.iterdir()) == ["preflight.txt"]


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nodes_that_fit_have_no_problem() -> None:
    assert problems_of([NODE, replace(NODE, host="b")], "auto") == []
    assert problems_of([replace(NODE, gpus=())], "cpu") == []


@pytest.mark.parametrize(
    ("other", "device", "words"),
    [
        (replace(NODE, host="b", gpus=("H100",)), "auto", ["b shows 1 GPUs", "2 ranks", "--gpus-per-node=2"]),
        (replace(NODE, host="b", gpus=()), "cuda", ["b shows 0 GPUs"]),
        (replace(NODE, host="b", shm_mib=64), "auto", ["b has 64 MiB in /dev/shm", "--ipc=host"]),
        (replace(NODE, host="b", gpus=("A100", "A100")), "auto", ["H100 on a", "A100 on b"]),
        (replace(NODE, host="b", versions={"torch": "2.12.0"}), "cpu", ["torch differs", "2.13.0 on a; 2.12.0 on b"]),
    ],
)
def test_a_node_that_differs_is_named(other: Node, device: str, words: list[str]) -> None:
    text = "\n".join(problems_of([NODE, other], device))
    assert text
    for word in words:
        assert word in text


def test_a_second_process_uses_the_device_and_compiles() -> None:
    assert try_second_process(torch.device("cpu"), compiles=True) is None


def test_a_node_without_a_compiler_is_told(tmp_path: Path) -> None:
    # An empty cache, or what was compiled before would be used.
    without = {"PATH": str(tmp_path), "CXX": str(tmp_path / "no-gcc"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    problem = try_second_process(torch.device("cpu"), compiles=True, environment=os.environ | without)
    assert problem is not None and "\n" not in problem
    assert "a second process on cpu failed" in problem and "needs a C compiler: install gcc" in problem
