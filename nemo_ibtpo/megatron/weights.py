"""Weights between Hugging Face and Megatron, for any tensor-, pipeline- and expert-parallel layout.

Every Megatron parameter has one rule that says which Hugging Face tensors make it up and how it is cut over the
tensor-parallel ranks. Loading reads, on each rank, only the tensors of the parameters it owns; exporting gathers
one parameter at a time, so that no rank ever holds more than one full parameter besides its own shard.

A parameter without a rule, a rule without a tensor, a tensor of another shape and a tensor that no rule uses are
errors that name it. Nothing is converted on the way but the dtype, so that Hugging Face -> Megatron -> Hugging
Face is bitwise the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.architecture import Architecture
from nemo_ibtpo.megatron.model import padded_vocab_size

Shapes = dict[str, tuple[int, ...]]


# Views of a shard and of the full tensors, of equal shapes, that hold the same numbers.
Pieces = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rule:
    """How one Megatron parameter is made of Hugging Face tensors.

    Attributes:
        shapes: Hugging Face names and full shapes, in the order ``pieces`` takes the tensors.
        shard_shape: of the parameter on one of so many tensor-parallel ranks.
        pieces: (shard, full tensors, rank, tensor-parallel size) -> where the parts of the shard lie in the full
            tensors. What it leaves out of the shard is padding, and zero.
        expert: number of the expert whose weight this is; it lives on one expert-parallel rank, uncut.
    """

    shapes: Shapes
    shard_shape: Callable[[int], tuple[int, ...]]
    pieces: Callable[[Tensor, Sequence[Tensor], int, int], Pieces]
    expert: int | None = None

    def shards(self, tensor_parallel_size: int) -> int:
        """How many different shards there are."""
        return 1 if self.shard_shape(tensor_parallel_size) == self.shard_shape(1) else tensor_parallel_size

    def cut(self, full: Sequence[Tensor], rank: int = 0, size: int = 1) -> Tensor:
        """A rank's shard of full tensors."""
        shard = torch.zeros(self.shard_shape(size), dtype=full[0].dtype, device=full[0].device)
        for ours, theirs in self.pieces(shard, full, rank, size):
            ours.copy_(theirs)
        return shard

    def merge(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Full tensors of the shards of all ranks."""
        full = [torch.empty(shape, dtype=shards[0].dtype, device=shards[0].device) for shape in self.shapes.values()]
        for rank, shard in enumerate(shards):
            for ours, theirs in self.pieces(shard, full, rank, len(shards)):
                theirs.copy_(ours)
        return full


def replicated(name: str, *shape: int) -> Rule:
    """Whole on every rank."""
    return Rule({name: shape}, lambda size: shape, lambda shard, full, rank, size: [(shard, full[0])])


def vocab_rows(name: str, vocab: int, hidden: int) -> Rule:
    """Rows of the vocabulary, padded with zero rows to a multiple of the tensor-parallel size."""

    def pieces(shard: Tensor, full: Sequence[Tensor], rank: int, size: int) -> Pieces:
        rows = full[0][rank * len(shard) : (rank + 1) * len(shard)]
        return [(shard[: len(rows)], rows)]

    return Rule({name: (vocab, hidden)}, lambda size: (padded_vocab_size(vocab, size) // size, hidden), pieces)


def output_rows(name: str, rows: int, *columns: int) -> Rule:
    """A column-parallel linear layer, or its bias: each rank holds a share of the output channels."""
    return Rule(
        {name: (rows, *columns)},
        lambda size: (rows // size, *columns),
        lambda shard, full, rank, size: [(shard, full[0].chunk(size)[rank])],
    )


def input_columns(name: str, rows: int, columns: int) -> Rule:
    """A row-parallel linear layer: each rank holds a share of the input columns."""
    return Rule(
        {name: (rows, columns)},
        lambda size: (rows, columns // size),
        lambda shard, full, rank, size: [(shard, full[0].chunk(size, dim=1)[rank])],
    )


def gate_and_up(gate: str, up: str, rows: int, columns: int) -> Rule:
    """Megatron's gated MLP: each rank holds its share of the gate above its share of the up projection."""

    def pieces(shard: Tensor, full: Sequence[Tensor], rank: int, size: int) -> Pieces:
        return list(zip(shard.chunk(2), (tensor.chunk(size)[rank] for tensor in full), strict=True))

    shapes: Shapes = {gate: (rows, columns), up: (rows, columns)}
    return Rule(shapes, lambda size: (2 * rows // size, columns), pieces)


def query_key_value(names: Sequence[str], arch: Architecture) -> Rule:
    """Megatron interleaves by key/value group: the group's queries, its key, its value.

    Args:
        names: of the weights, or biases, of the three.
    """
    groups, dim = arch.num_query_groups, arch.head_dim
    per_group = arch.num_attention_heads // groups
    trailing = () if names[0].endswith(".bias") else (arch.hidden_size,)

    def pieces(shard: Tensor, full: Sequence[Tensor], rank: int, size: int) -> Pieces:
        parts = shard.unflatten(0, (groups // size, -1)).split([per_group * dim, dim, dim], dim=1)
        by_group = (tensor.unflatten(0, (groups, -1)).chunk(size)[rank] for tensor in full)
        return list(zip(parts, by_group, strict=True))

    sizes = (arch.num_attention_heads * dim, groups * dim, groups * dim)
    return Rule(
        {name: (rows, *trailing) for name, rows in zip(names, sizes, strict=True)},
        lambda size: (sum(sizes) // size, *trailing),
        pieces,
    )


def _qkv(prefix: str, suffix: str) -> list[str]:
    return [f"{prefix}.{part}_proj.{suffix}" for part in "qkv"]


def _mlp(ours: str, theirs: str, ffn: int, hidden: int) -> dict[str, Rule]:
    return {
        f"{ours}.linear_fc1.weight": gate_and_up(
            f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight", ffn, hidden
        ),
        f"{ours}.linear_fc2.weight": input_columns(f"{theirs}.down_proj.weight", hidden, ffn),
    }


def rules(arch: Architecture) -> dict[str, Rule]:
    """Rules by Megatron parameter name, in Hugging Face order.

    Layers and experts are numbered over the whole model; experts are named as Megatron's ``SequentialMLP`` does.
    """
    if arch.bridge is not None:
        return dict(arch.bridge.rules)
    hidden, ffn = arch.hidden_size, arch.ffn_hidden_size
    table = {"embedding.word_embeddings.weight": vocab_rows("model.embed_tokens.weight", arch.vocab_size, hidden)}
    for i in range(arch.num_layers):
        ours, theirs = f"decoder.layers.{i}", f"model.layers.{i}"
        attention = f"{theirs}.self_attn"
        table[f"{ours}.input_layernorm.weight"] = replicated(f"{theirs}.input_layernorm.weight", hidden)
        table[f"{ours}.self_attention.linear_qkv.weight"] = query_key_value(_qkv(attention, "weight"), arch)
        if arch.qkv_bias:
            table[f"{ours}.self_attention.linear_qkv.bias"] = query_key_value(_qkv(attention, "bias"), arch)
        if arch.qk_norm:
            for which in "qk":
                table[f"{ours}.self_attention.{which}_layernorm.weight"] = replicated(
                    f"{attention}.{which}_norm.weight", arch.head_dim
                )
        table[f"{ours}.self_attention.linear_proj.weight"] = input_columns(
            f"{attention}.o_proj.weight", hidden, arch.num_attention_heads * arch.head_dim
        )
        table[f"{ours}.pre_mlp_layernorm.weight"] = replicated(f"{theirs}.post_attention_layernorm.weight", hidden)
        if arch.experts is None:
            table |= _mlp(f"{ours}.mlp", f"{theirs}.mlp", ffn, hidden)
            continue
        table[f"{ours}.mlp.router.weight"] = replicated(f"{theirs}.mlp.gate.weight", arch.experts.number, hidden)
        for e in range(arch.experts.number):
            expert = _mlp(
                f"{ours}.mlp.experts.local_experts.{e}",
                f"{theirs}.mlp.experts.{e}",
                arch.experts.ffn_hidden_size,
                hidden,
            )
            table |= {name: replace(rule, expert=e) for name, rule in expert.items()}
    table["decoder.final_layernorm.weight"] = replicated("model.norm.weight", hidden)
    if not arch.tied_embeddings:
        table["output_layer.weight"] = vocab_rows("lm_head.weight", arch.vocab_size, hidden)
    return table


# Transformer Engine fuses a norm with the linear layer behind it and names the weight after that layer.
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_qkv.layer_norm_bias": "input_layernorm.bias",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.layer_norm_bias": "pre_mlp_layernorm.bias",
}


# An expert's weight as Megatron's SequentialMLP names it, and as Transformer Engine's grouped layers do.
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(?P<expert>\d+)\.(?P<layer>linear_fc[12])\.weight")
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(?P<layer>linear_fc[12])\.weight(?P<expert>\d+)")


def global_name(name: str, layer_numbers: Sequence[int], first_expert: int = 0) -> str:
    """The name that a parameter of a model chunk has in :func:`rules`.

    Args:
        name: in the chunk, whose layers are numbered from 0, and whose experts are numbered from 0 on each rank.
        layer_numbers: of the chunk's layers in the whole model, from 1 as Megatron counts.
        first_expert: number of the rank's first expert in the whole model.
    """
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    inside = FUSED_NORMS.get(match[2], match[2])
    if of_expert := _EXPERT.fullmatch(inside) or _GROUPED_EXPERT.fullmatch(inside):
        number = first_expert + int(of_expert["expert"])
        inside = f"mlp.experts.local_experts.{number}.{of_expert['layer']}.weight"
    return f"decoder.layers.{layer_numbers[int(match[1])] - 1}.{inside}"


def global_parameters(chunks: Sequence[GPTModel], arch: Architecture) -> dict[str, torch.nn.Parameter]:
    """The parameters of this rank's model chunks under the names of :func:`rules`."""
    named: dict[str, torch.nn.Parameter] = {}
    first_expert = 0
    if arch.experts is not None:
        group = parallel_state.get_expert_model_parallel_group()
        first_expert = group.rank() * (arch.experts.number // group.size())
    for chunk in chunks:
        layer_numbers = [layer.layer_number for layer in chunk.decoder.layers]
        named |= {
            global_name(name, layer_numbers, first_expert): parameter for name, parameter in chunk.named_parameters()
        }
    if arch.tied_embeddings and "output_layer.weight" in named:
        # The last stage holds a copy of the embedding; it follows the embedding's rule.
        named["embedding.word_embeddings.weight"] = named.pop("output_layer.weight")
    return named


@torch.no_grad()
def load_weights(chunks: Sequence[GPTModel], arch: Architecture, source: Mapping[str, Tensor]) -> None:
    """Fill this rank's parameters from full Hugging Face tensors, read one parameter at a time.

    Args:
        chunks: this rank's part of the model.
        source: full tensors by Hugging Face name; only those that this rank needs are looked up.

    Raises:
        UserError: a weight is missing, superfluous, unmapped or of another shape; it is named.
    """
    table = rules(arch)
    check_names(source.keys(), arch)
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in global_parameters(chunks, arch).items():
        if name not in table:
            raise UserError(f"Megatron parameter '{name}' has no Hugging Face counterpart")
        rule = table[name]
        full = []
        for hf_name, shape in rule.shapes.items():
            tensor = source[hf_name]
            if tuple(tensor.shape) != shape:
                raise UserError(f"weight '{hf_name}' has shape {tuple(tensor.shape)}, config.json makes it {shape}")
            full.append(tensor.to(parameter.dtype))
        parameter.copy_(rule.cut(full, rank, size) if rule.expert is None else rule.cut(full))


def check_names(names: Iterable[str], arch: Architecture) -> None:
    """Compare the names of a checkpoint's weights with what the architecture needs.

    Raises:
        UserError: names the first missing or unknown weights.
    """
    needed = {hf_name for rule in rules(arch).values() for hf_name in rule.shapes}
    found = set(names)
    if arch.tied_embeddings:
        found.discard("lm_head.weight")  # some exporters write the tied copy too
    for kind, difference in (("missing", needed - found), ("unknown", found - needed)):
        if difference:
            shown = ", ".join(sorted(difference)[:3])
            more = f" and {len(difference) - 3} more" if len(difference) > 3 else ""
            raise UserError(f"{kind} weights in the checkpoint: {shown}{more}")


class WeightShard(NamedTuple):
    """A part of a Hugging Face weight, where this rank trains it.

    The part lies in the whole weight as ``whole.as_strided(tensor.shape, stride, offset)``.

    Attributes:
        name: Hugging Face name of the weight.
        shape: of the whole weight.
        stride, offset: of the part in the contiguous whole, in elements.
        tensor: the part, a view of the rank's parameter.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    tensor: Tensor


class WeightExporter:
    """The model under Hugging Face names, whole or as the parts of this rank; who owns what is worked out once."""

    def __init__(self, chunks: Sequence[GPTModel], arch: Architecture) -> None:
        self._arch = arch
        self._rules = rules(arch)
        self._local = global_parameters(chunks, arch)
        self._pp_group = parallel_state.get_pipeline_model_parallel_group()
        self._ep_group = parallel_state.get_expert_model_parallel_group()
        names_by_stage: list[list[str]] = [[] for _ in range(self._pp_group.size())]
        dist.all_gather_object(names_by_stage, list(self._local), group=self._pp_group)
        # The first stage that holds a parameter sends it (a tied embedding is also on the last stage).
        self._owner: dict[str, int] = {}
        for stage, names in reversed(list(enumerate(names_by_stage))):
            self._owner.update(dict.fromkeys(names, stage))
        # A rank names its own experts only; those of other ranks are on the stage of the layer's router.
        self._owner |= {
            name: self._owner[name.partition(".experts.")[0] + ".router.weight"]
            for name, rule in self._rules.items()
            if rule.expert is not None
        }
        if lost := set(self._rules) - set(self._owner):
            raise RuntimeError(f"no pipeline stage holds {sorted(lost)}")

    @torch.no_grad()
    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full tensor) in the model's order, on every rank.

        A collective over the tensor-, expert- and pipeline-parallel groups: all ranks must consume it to the end.
        """
        return self._stream(lambda parameter: parameter.detach())

    @torch.no_grad()
    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The accumulated gradients in the same form; a tied embedding's is the sum over both its uses."""
        return self._stream(lambda parameter: parameter.main_grad)  # type: ignore[attr-defined]

    @torch.no_grad()
    def shards(self) -> list[WeightShard]:
        """The parts of the weights that this rank holds, padding left out."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        size = parallel_state.get_tensor_model_parallel_world_size()
        shards = []
        for name, parameter in self._local.items():
            rule = self._rules[name]
            cut = (rank, size) if rule.expert is None else (0, 1)
            whole = [torch.empty(shape, device="meta") for shape in rule.shapes.values()]
            pieces = rule.pieces(parameter.detach(), whole, *cut)
            for (hf_name, shape), (ours, theirs) in zip(rule.shapes.items(), pieces, strict=True):
                if ours.numel():
                    shards.append(WeightShard(hf_name, shape, theirs.stride(), int(theirs.storage_offset()), ours))
        return shards

    def _stream(self, value_of: Callable[[torch.nn.Parameter], Tensor]) -> Iterator[tuple[str, Tensor]]:
        dtype = value_of(next(iter(self._local.values()))).dtype
        for name, rule in self._rules.items():
            owner = self._owner[name]
            mine = owner == self._pp_group.rank()
            if not mine or name not in self._local:
                full = [torch.empty(shape, dtype=dtype, device=self._device) for shape in rule.shapes.values()]
            elif rule.expert is None:
                full = rule.merge(self._gather_tensor_parallel(value_of(self._local[name])))
            else:
                full = rule.merge([value_of(self._local[name])])
            for hf_name, tensor in zip(rule.shapes, full, strict=True):
                tensor = tensor.contiguous()
                if mine and rule.expert is not None:
                    _broadcast(tensor, rule.expert // self._experts_per_rank, self._ep_group)
                _broadcast(tensor, owner, self._pp_group)
                yield hf_name, tensor

    @property
    def _experts_per_rank(self) -> int:
        assert self._arch.experts is not None
        return self._arch.experts.number // self._ep_group.size()

    @property
    def _device(self) -> torch.device:
        return next(iter(self._local.values())).device

    @staticmethod
    def _gather_tensor_parallel(shard: Tensor) -> list[Tensor]:
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() == 1:
            return [shard]
        shards = [torch.empty_like(shard) for _ in range(group.size())]
        dist.all_gather(shards, shard.contiguous(), group=group)
        return shards


def _broadcast(tensor: Tensor, rank: int, group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        dist.broadcast(tensor, src=dist.get_global_rank(group, rank), group=group)
