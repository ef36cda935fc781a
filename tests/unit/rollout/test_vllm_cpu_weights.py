"""What the loader of vLLM's CPU weights refuses, by name, instead of leaving old weights in place.

That it loads right is in ``test_vllm_engine.py``, on vLLM.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from nemo_ibtpo.rollout.vllm.cpu_weights import InPlaceLoader


class Toy(nn.Module):
    packed_modules_mapping: ClassVar = {"both": ["one", "other"]}

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            module_name, kind = name.split(".")
            module = nn.Module()
            module.register_parameter(kind, nn.Parameter(tensor, requires_grad=False))
            self.add_module(module_name, module)


@pytest.mark.parametrize(
    ("parameters", "weights", "message"),
    [
        ({"both.bias": [4]}, {"one.bias": [2]}, "parameter both.bias is made of other.bias, which"),
        ({"norm.weight": [2]}, {"norm.weight": [2], "extra": [1]}, "no parameter for extra"),
        ({"norm.weight": [2]}, {"norm.weight": [3]}, "no way to load norm.weight of Module"),
        ({"scale.weight": [2, 2]}, {"scale.weight": [2, 2]}, "no way to load scale.weight of Module"),
    ],
)
def test_a_parameter_that_is_not_known_is_named(
    parameters: dict[str, list[int]], weights: dict[str, list[int]], message: str
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    model = Toy({name: torch.zeros(shape) for name, shape in parameters.items()})
    with pytest.raises(ValueError, match=message):
        InPlaceLoader(model, {name: torch.ones(shape) for name, shape in weights.items()})


def test_a_merged_vector_is_loaded_once_its_parts_are_there() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    model = Toy({"both.bias": torch.zeros(3)})
    weights = {"one.bias": torch.ones(1), "other.bias": torch.full((2,), 2.0)}
    loader = InPlaceLoader(model, weights)
    seen = []

    def arriving():
        for name in weights:
            seen.append(model.both.bias.tolist())
            yield name

    loader.load(arriving())
    assert seen == [[0, 0, 0], [0, 0, 0]]
    assert model.both.bias.tolist() == [1, 2, 2]
    weights["one.bias"].fill_(5)  # the same memory
    loader.load(weights)
    assert model.both.bias.tolist() == [5, 2, 2]
