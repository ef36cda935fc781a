"""New weights into vLLM's model on a CPU without the copies that its general reload makes.

vLLM packs every matrix for the CPU's kernels and keeps the packed form alone. Its ``reload_weights`` allocates each
layer anew, copies the weights into it, packs them, and copies a second time what is kept unpacked. Here a matrix is
packed by vLLM's own hook (``process_weights_after_loading``) from where it lies in the shared memory, and the rest is
copied into the parameters that are there.

Doing without the packed form would make loading one copy, and sampling slower: 32 rows times a matrix of 768 x 2,048
take three times as long in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn


class InPlaceLoader:
    """Loads the weights of a model, as often as one likes.

    Args:
        model: vLLM's, loaded.
        weights: full tensors by Hugging Face name; always the same memory.

    Attributes:
        serves: whether all of the model is such that this works: vectors, embeddings and matrices, not quantized.
            Experts, which vLLM stacks, are not.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self._loads: dict[str, tuple[frozenset[str], Callable[[], None]]] = {}  # by each name that they wait for
        merged: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
        names: list[str] = []
        self.serves = True
        for name, parameter in model.named_parameters():  # a tied output layer is the embedding
            module_name, _, kind = name.rpartition(".")
            parent, _, layer = module_name.rpartition(".")
            parts = [f"{parent}.{part}.{kind}" for part in merged[layer]] if layer in merged else [name]
            names += parts
            if not weights.keys() >= set(parts):
                self.serves = False
                return
            load = _loader(model.get_submodule(module_name), kind, parameter, [weights[part] for part in parts])
            self.serves &= load is not None
            if load is not None:
                self._loads |= dict.fromkeys(parts, (frozenset(parts), load))
        self.serves &= sorted(names) == sorted(weights)

    def load(self, names: Iterable[str]) -> None:
        """Load the weights in the order in which ``names`` says that they are there; all of them, once."""
        arrived: set[str] = set()
        for name in names:
            arrived.add(name)
            parts, load = self._loads[name]
            if parts <= arrived:
                load()


def _loader(
    module: nn.Module, kind: str, parameter: nn.Parameter, parts: Sequence[Tensor]
) -> Callable[[], None] | None:
    """What loads a parameter; None if it is of a sort that is not known here."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    method = getattr(module, "quant_method", None)
    if isinstance(method, UnquantizedLinearMethod) and kind == "weight":
        return partial(_pack, module, parts)
    if isinstance(method, UnquantizedEmbeddingMethod):
        return partial(_copy_and_pack, module, parameter, parts)
    if parameter.ndim == 1 and len(parameter) == sum(map(len, parts)):
        return partial(_copy, parameter, parts)
    return None


def _pack(module: nn.Module, parts: Sequence[Tensor]) -> None:
    module.cpu_linear = None  # type: ignore[assignment]  # its memory is taken for the new one
    module.weight = nn.Parameter(_joined(parts), requires_grad=False)
    module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]


def _copy_and_pack(module: nn.Module, parameter: nn.Parameter, parts: Sequence[Tensor]) -> None:
    _copy(parameter, parts)  # rows beyond these are padding
    module.cpu_linear = None  # type: ignore[assignment]
    module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]


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
