"""What vLLM's own workers do for us: take weights from the owner's shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
    def load_segment(self, path: str, layout: Sequence[SharedTensor], names: Iterable[str]) -> None:
        """Load weights of the memory file at ``path`` in the order in which ``names`` gives them.

        ``names`` may wait for a weight to be written. Each worker takes its shard of the full tensors.
        """
        fd = os.open(path, os.O_RDWR)
        try:
            weights = map_weights(fd, layout, self.model_config.dtype)
        finally:
            os.close(fd)
        self.reload_weights(weights_iterator=((name, weights[name]) for name in names))
        self._renew_tied_head()

    def _renew_tied_head(self) -> None:
        """vLLM 0.32 packs weights for the CPU's matrix products, the embedding's and the output layer's too, and
        forgets the latter where it is tied to the former: it would go on with the old weights."""
        model = self.model_runner.get_model()
        if self.model_config.hf_text_config.tie_word_embeddings and hasattr(model.lm_head, "cpu_linear"):
            model.lm_head.cpu_linear = model.model.embed_tokens.cpu_linear
