"""Tests of this directory need a GPU and are skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False"))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Each test compiles its own graphs: torch's recompile limit is one for the whole process."""
    torch._dynamo.reset()
