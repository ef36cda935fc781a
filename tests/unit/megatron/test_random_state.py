"""Random generators come back as they were, through a file that holds no pickle."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from nemo_ibtpo.megatron import random_state
from nemo_ibtpo.megatron.cpu import cuda_on_cpu


def draw() -> list[float]:
    with get_cuda_rng_tracker().fork("test"):
        megatron = float(torch.rand(()))
    return [random.random(), random.gauss(0, 1), np.random.normal(), float(torch.rand(())), megatron]  # noqa: NPY002


def test_generators_come_back(tmp_path: Path) -> None:
    with cuda_on_cpu():
        tracker = get_cuda_rng_tracker()
        before = tracker.get_states()
        try:
            tracker.add("test", 7)
            draw()  # half of a pair of Gaussian numbers is kept
            random_state.write(random_state.capture(), tmp_path / "rng" / "rank_0.safetensors")
            expected = draw()
            assert draw() != expected
            random_state.restore(random_state.read(tmp_path / "rng" / "rank_0.safetensors"))
            assert draw() == expected
        finally:
            tracker.reset()
            tracker.set_states(before)
