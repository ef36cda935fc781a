"""The random generators of a rank: Python's, numpy's, torch's and Megatron's.

Growth and evaluation draw from generators of their own, seeded per request, and dropout is off; these are kept so
that whatever else draws goes on where it was. Stored as safetensors, so that nothing is unpickled.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from safetensors import safe_open
from torch import Tensor

from nemo_ibtpo.megatron.safetensors_io import write_tensors

RandomState = dict[str, Tensor]

_MEGATRON = "megatron."
_PYTHON, _NUMPY, _TORCH, _CUDA = "python", "numpy", "torch", "cuda"


def seed(number: int) -> None:
    """Seed what Megatron does not: Python's and numpy's generators and torch's on the CPU."""
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(number)


def capture() -> RandomState:
    """Copies of the states; call within the actor's scope."""
    version, words, gauss = random.getstate()
    # numpy's global generator is what libraries draw from that know no other.
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    assert version == 3 and name == "MT19937" and isinstance(keys, np.ndarray)
    state = {
        _PYTHON: torch.tensor(words, dtype=torch.int64),
        f"{_PYTHON}.gauss": torch.tensor([np.nan if gauss is None else gauss], dtype=torch.float64),
        _NUMPY: torch.from_numpy(keys.astype(np.int64)),
        f"{_NUMPY}.rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        _TORCH: torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state[_CUDA] = torch.cuda.get_rng_state()
    states = get_cuda_rng_tracker().get_states()
    return state | {f"{_MEGATRON}{name}": value.clone() for name, value in states.items()}


def restore(state: RandomState) -> None:
    """Set the generators; call within the actor's scope."""
    gauss = float(state[f"{_PYTHON}.gauss"])
    random.setstate((3, tuple(state[_PYTHON].tolist()), None if np.isnan(gauss) else gauss))
    position, has_gauss, cached = state[f"{_NUMPY}.rest"].tolist()
    keys = state[_NUMPY].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))  # noqa: NPY002
    torch.set_rng_state(state[_TORCH])
    if _CUDA in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[_CUDA])
    names = [name for name in state if name.startswith(_MEGATRON)]
    get_cuda_rng_tracker().set_states({name.removeprefix(_MEGATRON): state[name] for name in names})


def write(state: RandomState, path: Path) -> None:
    """Write one rank's states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors({name: value.contiguous() for name, value in state.items()}, path)


def read(path: Path) -> RandomState:
    """What :func:`write` wrote."""
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
