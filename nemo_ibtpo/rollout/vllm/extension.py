"""What vLLM's own workers do for us: take weights from the owner's shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from vllm.config import set_current_vllm_config

from nemo_ibtpo.rollout.transport.segment import map_weights
from nemo_ibtpo.rollout.vllm.cpu_weights import InPlaceLoader
from nemo_ibtpo.rollout.vllm.messages import SharedTensor


class SegmentLoader:
    """Mixed into vLLM's worker class."""

    reload_weights: Any
    model_config: Any
    model_runner: Any
    vllm_config: Any
    device: torch.device
    _segment: dict[str, torch.Tensor] | None = None
    _in_place: InPlaceLoader | None = None

    @torch.no_grad()
    def load_segment(self, path: str, layout: Sequence[SharedTensor], names: Iterable[str]) -> None:
        """Load weights of the memory file at ``path``, the same at every call, in the order of ``names``.

        ``names`` may wait for a weight to be written. Each worker takes its shard of the full tensors.
        """
        if self._segment is None:
            fd = os.open(path, os.O_RDWR)
            self._segment = map_weights(fd, layout, self.model_config.dtype)
            os.close(fd)
            if self.device.type == "cpu":
                self._in_place = InPlaceLoader(self.model_runner.get_model(), self._segment)
        if self._in_place is not None:
            with set_current_vllm_config(self.vllm_config):
                self._in_place.load(names)
        else:
            self.reload_weights(weights_iterator=((name, self._segment[name]) for name in names))
        self._renew_tied_head()

    def _renew_tied_head(self) -> None:
        """vLLM 0.32 packs weights for the CPU's matrix products, the embedding's and the output layer's too, and
        forgets the latter where it is tied to the former: it would go on with the old weights."""
        model = self.model_runner.get_model()
        if self.model_config.hf_text_config.tie_word_embeddings and hasattr(model.lm_head, "cpu_linear"):
            model.lm_head.cpu_linear = model.model.embed_tokens.cpu_linear
