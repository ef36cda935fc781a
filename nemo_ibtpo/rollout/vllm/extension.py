"""What vLLM's own workers do for us: take new weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import set_current_vllm_config

from nemo_ibtpo.rollout.transport.memory import MemoryLayout
from nemo_ibtpo.rollout.vllm.compat import LayerwiseLoader, renew_tied_head
from nemo_ibtpo.rollout.vllm.cpu_weights import InPlaceLoader


class WeightLoader:
    """Mixed into vLLM's worker class; each worker takes its shard of the full tensors."""

    model_config: Any
    model_runner: Any
    vllm_config: Any
    device: torch.device
    _memory: dict[str, torch.Tensor]
    _in_place: InPlaceLoader | None = None
    _layerwise: LayerwiseLoader | None = None

    def attach_memory(self, memory: MemoryLayout) -> None:
        """New weights will lie in this memory."""
        on_cpu = self.device.type == "cpu"
        self._memory = memory.map(pinned=not on_cpu)
        self._in_place = InPlaceLoader(self.model_runner.get_model(), self._memory) if on_cpu else None

    @torch.no_grad()
    def load_from_memory(self, names: Sequence[str]) -> None:
        """Load weights that lie in the attached memory."""
        if self._in_place is None:
            self._load([(name, self._memory[name]) for name in names])
            return
        with set_current_vllm_config(self.vllm_config):
            self._in_place.load(names)

    @torch.no_grad()
    def load_from_handles(self, handles: Sequence[tuple[str, Any]]) -> None:
        """Load weights that lie on the same GPU in another process's memory; returns once they have been read."""
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        # Device numbers differ between processes; the seventh argument is this one's.
        rebuilt = [
            (name, rebuild_cuda_tensor(*(*handle[:6], self.device.index, *handle[7:]))) for name, handle in handles
        ]
        self._load(rebuilt)
        torch.cuda.current_stream().synchronize()

    @torch.no_grad()
    def finish_load(self) -> None:
        """After the last weights of an update."""
        with set_current_vllm_config(self.vllm_config):
            if self._layerwise is not None:
                self._layerwise.finish()
                self._layerwise = None
            if self._in_place is not None:
                self._in_place.finish()
        if self.model_config.hf_text_config.tie_word_embeddings:
            renew_tied_head(self.model_runner.get_model())

    def _load(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        with set_current_vllm_config(self.vllm_config):
            if self._layerwise is None:
                self._layerwise = LayerwiseLoader(self.model_runner.get_model(), self.model_config)
            self._layerwise.load(weights)
