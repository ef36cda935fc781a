"""What vLLM's own workers do for us: take weights from the owner's shared memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from nemo_ibtpo.rollout.vllm_messages import SharedTensor
from nemo_ibtpo.rollout.weight_segment import map_weights


class SegmentLoader:
    """Mixed into vLLM's worker class."""

    reload_weights: Any
    model_config: Any
    model_runner: Any

    @torch.no_grad()
    def load_segment(self, path: str, layout: Sequence[SharedTensor]) -> None:
        """Load every weight of the memory file at ``path``; each worker takes its shard of the full tensors."""
        fd = os.open(path, os.O_RDWR)
        try:
            weights = map_weights(fd, layout, self.model_config.dtype)
        finally:
            os.close(fd)
        self.reload_weights(weights_iterator=iter(weights.items()))
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        """vLLM 0.32 packs weights for the CPU's matrix products, the output layer's too, and forgets to do it again
        for one that is tied to the embedding: it would go on with the old weights."""
        head: Any = getattr(self.model_runner.get_model(), "lm_head", None)
        if self.model_config.hf_text_config.tie_word_embeddings and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)
