"""Keys and values of the running sequences, one row each, and the attention that reads them.

One preallocated tensor holds every layer: ``kv[layer, 0 or 1, row, kv_head, position, dim]`` (0 keys, 1 values).
A forward pass works on neighbouring rows and reads a view of them, so that a decode step copies nothing but the
new keys and values; moving a row, or copying a prefix into it, is one tensor operation for all layers.

Each row holds as many positions as the model may see, and one more, the *bin*: padding of a batched prefill
writes there and nothing ever reads it. Memory starts at zero and only ever takes finite numbers, since masked
positions still enter the attention with weight zero, and zero times NaN would be NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

GROUPED_ATTENTION = "nemo_ibtpo_grouped"


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention that lays the heads of a group along the query axis.

    Repeating the keys and values for every head, as the stock function does where there is a mask, copies the
    whole cache in each layer of each decode step.

    Args:
        module: the attention layer that calls; unused.
        query: [B, heads, T, dim].
        key, value: [B, kv_heads, W, dim].
        attention_mask: additive [B, 1, T, W].
        scaling: multiplies the scores.

    Returns:
        Outputs [B, T, heads, dim], and None in place of the weights.
    """
    B, heads, T, dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    mask = attention_mask if T == 1 else attention_mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(
        query.reshape(B, kv_heads, groups * T, dim), key, value, attn_mask=mask, scale=scaling
    )
    return output.reshape(B, heads, T, dim).transpose(1, 2), None


AttentionInterface.register(GROUPED_ATTENTION, _grouped_attention)


class _RowLayer(CacheLayerMixin):
    """One layer's share of a RowCache."""

    is_sliding = False

    def __init__(self, cache: RowCache, layer: int) -> None:
        super().__init__()
        self._cache = cache
        self.keys, self.values = cache.kv[layer]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, kv_heads, T, dim] at the selected positions; return the rows up to the selected width."""
        rows, row_B1, positions_BT, width = self._cache.selection
        self.keys[row_B1, :, positions_BT] = key_states.transpose(1, 2)
        self.values[row_B1, :, positions_BT] = value_states.transpose(1, 2)
        return self.keys[rows, :, :width], self.values[rows, :, :width]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the memory is there from the start."""

    def get_seq_length(self) -> int:
        """No single number: rows have lengths of their own, which the position ids carry."""
        raise RuntimeError("rows of the cache have lengths of their own; pass position ids and a mask")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked for: the mask is given."""
        raise RuntimeError("transformers asks for a mask, but the engine always passes one")

    def get_max_length(self) -> int:
        """Positions of a row."""
        return self._cache.max_length


class RowCache(Cache):
    """The running sequences' keys and values, in the form that transformers' models write to and read from.

    Args:
        config: the model's; says how many layers and heads there are and how large they are.
        rows: sequences held.
        max_length: positions of a row, the bin not counted.
        dtype, device: the model's.
    """

    def __init__(
        self, config: PreTrainedConfig, *, rows: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.max_length = max_length
        shape = (config.num_hidden_layers, 2, rows, config.num_key_value_heads, max_length + 1, head_dim)
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        super().__init__(layers=[_RowLayer(self, layer) for layer in range(config.num_hidden_layers)])

    @property
    def bin(self) -> int:
        """The position that takes padding."""
        return self.max_length

    def select(self, first_row: int, positions_BT: torch.Tensor, width: int) -> torch.Tensor:
        """Say what the next forward pass writes and reads.

        Args:
            first_row: the pass works on the rows ``first_row .. first_row + B - 1``.
            positions_BT: position of each of its tokens; ``bin`` for padding.
            width: positions that are read: at least the largest position besides the bin, plus 1.

        Returns:
            The additive mask [B, 1, T, width]: a token sees its row up to its own position.
        """
        rows = slice(first_row, first_row + len(positions_BT))
        row_B1 = torch.arange(rows.start, rows.stop, device=self.kv.device)[:, None]
        self.selection = rows, row_B1, positions_BT, width
        hidden_BTW = torch.arange(width, device=self.kv.device) > positions_BT[:, :, None]
        mask_BTW = torch.zeros(hidden_BTW.shape, dtype=self.kv.dtype, device=self.kv.device)
        return mask_BTW.masked_fill_(hidden_BTW, -torch.inf)[:, None]

    def write_prefix(self, row: int, segments: list[torch.Tensor]) -> None:
        """Fill the start of a row with segments [layers, 2, kv_heads, n_i, dim]."""
        start = 0
        for segment in segments:
            stop = start + segment.shape[-2]
            self.kv[:, :, row, :, start:stop] = segment
            start = stop

    def read(self, row: int, length: int) -> torch.Tensor:
        """A view of the first ``length`` positions of a row, [layers, 2, kv_heads, length, dim]."""
        return self.kv[:, :, row, :, :length]

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first ``length`` positions of some rows over those of others."""
        self.kv[:, :, targets, :, :length] = self.kv[:, :, sources, :, :length]

    def zero(self) -> None:
        """Erase every row."""
        self.kv.zero_()
