"""New weights into vLLM's model on a CPU, where its general reload is slow, and wrong for experts.

vLLM packs every matrix for the CPU's kernels and keeps the packed form alone. Its ``reload_weights`` allocates each
layer again, copies the weights into it, packs them, and copies twice what is kept unpacked; experts are packed
at the first loading only (vLLM 0.32), and later weights taken for packed ones. Here vLLM's own hooks
(``process_weights_after_loading``) pack a matrix from where it lies in the shared memory, and experts once they are
stacked; the rest is copied into the parameters that are there.

Doing without the packed form would make loading one copy, and sampling slower: 32 rows times a matrix of 768 x 2,048
take three times as long in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nemo_ibtpo.rollout.vllm.compat import is_embedding, is_experts, is_linear, pack_experts, pack_linear


class InPlaceLoader:
    """Loads the weights of a model, as often as one likes.

    Args:
        model: vLLM's, loaded.
        weights: full tensors by Hugging Face name; always the same memory.

    Raises:
        ValueError: the model has a parameter that is not known here (vectors, embeddings, matrices and experts are,
            but nothing quantized), or that is not made of these weights; it is named.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self._arrived: set[str] = set()
        self._loads: dict[str, tuple[frozenset[str], Callable[[], None]]] = {}  # by each name that they wait for
        merged: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
        for name, parameter in model.named_parameters():  # a tied output layer is the embedding
            module_name, _, kind = name.rpartition(".")
            module = model.get_submodule(module_name)
            names = _names(module_name, module, kind, parameter, merged)
            if missing := [part for part in names if part not in weights]:
                raise ValueError(f"vLLM's parameter {name} is made of {missing[0]}, which the model does not have")
            load = _loader(module, kind, parameter, [weights[part] for part in names])
            if load is None:
                raise ValueError(f"vLLM on a CPU: no way to load {name} of {type(module).__name__} is known")
            self._loads |= dict.fromkeys(names, (frozenset(names), load))
        if unused := sorted(weights.keys() - self._loads.keys()):
            raise ValueError(f"vLLM's model has no parameter for {unused[0]}")

    def load(self, names: Iterable[str]) -> None:
        """Load these weights, in a parameter once all that it is made of are there."""
        for name in names:
            self._arrived.add(name)
            parts, load = self._loads[name]
            if parts <= self._arrived:
                load()

    def finish(self) -> None:
        """After the last weights of an update.

        Raises:
            ValueError: a weight has not been loaded; it is named.
        """
        missing = sorted(self._loads.keys() - self._arrived)
        self._arrived.clear()
        if missing:
            raise ValueError(f"{missing[0]} was not loaded")


def _names(
    module_name: str, module: nn.Module, kind: str, parameter: nn.Parameter, merged: Mapping[str, Sequence[str]]
) -> list[str]:
    """The weights that a parameter is made of; for either parameter of experts, those of both."""
    layer = module_name.rpartition(".")[2]
    within = module_name.removesuffix(layer)
    if is_experts(module):
        experts = range(len(parameter))
        return [f"{within}{i}.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj") for i in experts]
    return [f"{within}{part}.{kind}" for part in merged.get(layer, [layer])]


def _loader(
    module: nn.Module, kind: str, parameter: nn.Parameter, parts: Sequence[Tensor]
) -> Callable[[], None] | None:
    """What loads a parameter; None if it is of a sort that is not known here."""
    if is_experts(module):
        return partial(_stack_and_pack, module, parts)
    if is_linear(module) and kind == "weight":
        return lambda: pack_linear(module, _joined(parts))
    if is_embedding(module):
        return partial(_copy_and_pack, module, parameter, parts)
    if parameter.ndim == 1 and len(parameter) == sum(map(len, parts)):
        return partial(_copy, parameter, parts)
    return None


def _stack_and_pack(experts: nn.Module, parts: Sequence[Tensor]) -> None:
    count = len(parts) // 3
    gates, ups, downs = parts[:count], parts[count : 2 * count], parts[2 * count :]
    both = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    pack_experts(experts, both, torch.stack(list(downs)))


def _copy_and_pack(module: nn.Module, parameter: nn.Parameter, parts: Sequence[Tensor]) -> None:
    _copy(parameter, parts)  # rows beyond these are padding
    pack_linear(module, None)


def _copy(parameter: nn.Parameter, parts: Sequence[Tensor]) -> None:
    start = 0
    for part in parts:
        parameter[start : start + len(part)].copy_(part)
        start += len(part)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts as one matrix: a view of the shared memory where they lie one behind the other there."""
    first, rows = parts[0], sum(map(len, parts))
    ends = [part.data_ptr() + part.nbytes for part in parts]
    if [part.data_ptr() for part in parts[1:]] == ends[:-1]:
        return first.as_strided((rows, *first.shape[1:]), first.stride())
    return torch.cat(list(parts))
