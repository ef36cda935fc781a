"""Tests of this directory need a GPU and are skipped, with the reason, where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The ranks of tests/distributed are modules of cases, which some tests here run on a GPU.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False"))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No test uses up the graphs that another one may compile."""
    yield
    torch._dynamo.reset()
