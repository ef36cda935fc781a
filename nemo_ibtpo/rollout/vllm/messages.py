"""What an engine's owner and its vLLM process say to each other, over a pipe.

Both are this program, so that messages are pickled. Requests go by a number of the owner's choosing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.transport.memory import MemoryLayout
from nemo_ibtpo.tree.node import FinishReason

# --- to the process ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: make the engine.

    Attributes:
        model_path: directory with a Hugging Face model.
        dtype: torch's name of the dtype of weights, keys and values.
        device: ``cpu`` or ``cuda``.
        tensor_parallel_size: devices that share the model.
        max_model_len: most tokens of a sequence, its prefix included.
        hf_overrides: values that replace those of the model's config.json.
        max_batch_size: most sequences decoded at once.
        kv_cache_gib: memory for keys and values on a CPU.
        gpu_memory_utilization: share of a GPU's memory.
        enforce_eager: no CUDA graphs.
        sampling: of the first requests.
        max_kept: largest kept set that it returns with each token where sampling is truncated; 0 returns none.
        memory: where new weights will lie; None if there are none yet.
        from_memory: take the first weights from there, not from the model's directory.
    """

    model_path: str
    dtype: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda"]
    tensor_parallel_size: int
    max_model_len: int
    hf_overrides: Mapping[str, Any]
    max_batch_size: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    enforce_eager: bool
    sampling: SamplingParams
    max_kept: int
    memory: MemoryLayout | None
    from_memory: bool


@dataclass(frozen=True, slots=True)
class NumberedRequest:
    """A continuation to sample; see ``RolloutRequest``."""

    number: int
    prefix: tuple[int, ...]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Sample these too."""

    requests: Sequence[NumberedRequest]


@dataclass(frozen=True, slots=True)
class SetSampling:
    """Sample later requests like this."""

    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop all requests."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell from now on how far requests are."""


@dataclass(frozen=True, slots=True)
class Cut:
    """End all requests; answered by ``CutOff``, rollouts that finish meanwhile by ``Finished``.

    Attributes:
        at_least: tokens that a request is to have before it ends, by number.
    """

    at_least: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Free device memory until the next weights; answered by ``Slept``."""


@dataclass(frozen=True, slots=True)
class AttachMemory:
    """New weights will lie in this memory."""

    memory: MemoryLayout


@dataclass(frozen=True, slots=True)
class LoadFromMemory:
    """Load these weights, which lie in the memory; the first of an update wakes the engine."""

    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class LoadFromHandles:
    """Load weights through CUDA IPC; answered by ``Loaded``, until when the owner keeps their memory.

    Attributes:
        handles: names of weights, each with the arguments of torch's ``rebuild_cuda_tensor``.
    """

    handles: Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class FinishLoad:
    """All weights of an update have been sent; answered by ``Loaded`` once they are in use."""


ToProcess = (
    Submit | SetSampling | Abort | Report | Cut | Sleep | AttachMemory | LoadFromMemory | LoadFromHandles | FinishLoad
)

# --- from the process ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine can sample."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights were taken."""


@dataclass(frozen=True, slots=True)
class Slept:
    """Device memory is free."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Work goes on; nothing has finished for a while."""


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A continuation; see ``Rollout``.

    Attributes:
        cached_tokens: tokens of the prefix whose keys and values were re-used.
    """

    number: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    kept: tuple[bytes, ...]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """These are done."""

    requests: Sequence[FinishedRequest]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens drawn so far for requests that got further, by number; a few may have been drawn since."""

    tokens: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class CutOff:
    """All requests have ended: token ids and log-probabilities of those that had not finished, by number."""

    requests: Mapping[int, tuple[tuple[int, ...], tuple[float, ...]]]


@dataclass(frozen=True, slots=True)
class Failed:
    """The process gives up.

    Attributes:
        reason: one line; the log has the rest.
    """

    reason: str


FromProcess = Ready | Loaded | Slept | Alive | Finished | Drawn | CutOff | Failed
