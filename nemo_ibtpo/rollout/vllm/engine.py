"""The engine on vLLM: prefix caching, paged keys and values, tensor parallelism, kernels for every GPU.

vLLM runs in a process of its own (``process``, ``worker``). What this module guarantees:

- A request is answered exactly once. A process that dies, fails or hangs is replaced, starts with the weights that
  were loaded last, and is given every unanswered request again, with its seed. Restarts without an answer in between
  are limited.
- After an update no key or value of the old weights is used.
- Log-probabilities are of the sampling distribution, in vLLM's float32.

vLLM re-uses prefixes in whole blocks (32 tokens on a CPU), and its matrix products may differ in the last bits with
the number of sequences in a batch: a rollout depends on its company only where two tokens are as good as equally
likely to that precision.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RolloutConfig
from nemo_ibtpo.rollout.engine import EngineStats, SamplingParams
from nemo_ibtpo.rollout.requests import check_request, check_sampling
from nemo_ibtpo.rollout.transport.memory import HostMemory, layouts_differ
from nemo_ibtpo.rollout.vllm.checks import check_servable, read_shapes, visible_devices
from nemo_ibtpo.rollout.vllm.compat import rotary_overrides
from nemo_ibtpo.rollout.vllm.messages import (
    Abort,
    AttachMemory,
    Cut,
    CutOff,
    Drawn,
    Failed,
    Finished,
    FinishLoad,
    FromProcess,
    Loaded,
    LoadFromHandles,
    LoadFromMemory,
    NumberedRequest,
    Ready,
    Report,
    SetSampling,
    Sleep,
    Slept,
    Start,
    Submit,
    ToProcess,
)
from nemo_ibtpo.rollout.vllm.process import EndedError, RefusedError, VLLMProcess
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished

Answer = TypeVar("Answer", Slept, Loaded, CutOff)

_POLL_S = 0.002  # growth looks after its verifiers in between
_TIES = 8  # vLLM keeps more than top_k tokens where the last of them are equally likely
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
        return_kept: rollouts say what each token was drawn from, where sampling is truncated; ``config.top_k`` bounds
            it.

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
        return_kept: bool = False,
    ) -> None:
        hf_config = json.loads((model_path / "config.json").read_text())
        check_servable(config, hf_config, dtype, device, max_model_len)
        self._model_path = model_path
        self._tied: bool = hf_config.get("tie_word_embeddings", False)
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
        self._drawn: dict[Hashable, int] = {}  # of unfinished requests, as reported
        self._reports = False
        self._memory: HostMemory | None = None
        self._load_error: str | None = None  # of an update that is under way
        self._devices = visible_devices(device, config.tensor_parallel_size)
        self._start = Start(
            model_path=str(model_path),
            dtype=_DTYPES[dtype],  # type: ignore[arg-type]
            device="cuda" if device.type == "cuda" else "cpu",
            tensor_parallel_size=config.tensor_parallel_size,
            max_model_len=max_model_len,
            hf_overrides=rotary_overrides(model_path, max_model_len),
            max_batch_size=config.max_batch_size,
            kv_cache_gib=config.vllm.kv_cache_gib,
            gpu_memory_utilization=config.vllm.gpu_memory_utilization,
            enforce_eager=config.vllm.enforce_eager,
            sampling=sampling,
            max_kept=config.top_k + _TIES if return_kept else 0,
            memory=None,
            from_memory=False,
        )
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._process = VLLMProcess(self._start, log_path, self._devices)
        try:
            self._await_ready()
        except RefusedError as error:  # and would do so again
            self.close()
            raise UserError(f"vLLM does not start: {error}; its log is {self._log_path}") from error
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

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """Tokens drawn so far, at least, for requests that have so many, as far as the process has reported."""
        if not self._reports:
            self._reports = True
            self._process.send(Report())
        drawn = self._drawn
        return {id_: drawn[id_] for id_, count in at_least.items() if drawn.get(id_, -1) >= count}

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests, each with at least so many tokens; see ``RolloutSource``.

        Raises:
            UserError: as :meth:`poll`.
        """
        cut: list[Unfinished] = []
        while self._unanswered:
            counts = {number: at_least.get(request.request_id, 0) for number, request in self._unanswered.items()}
            try:
                message = self._request(Cut(counts), CutOff)
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
        """Free the GPU's memory until the next update, and wait until it is free; a CPU engine keeps its memory.

        Raises:
            UserError: the process died or hung again and again.
            RuntimeError: requests are unfinished.
        """
        self._require_idle("sleep")
        while True:
            try:
                self._request(Sleep(), Slept)
                return
            except EndedError as error:
                self._replace(str(error))

    # --- new weights, from a transport ----------------------------------------------------------------------------

    def attach_memory(self, memory: HostMemory) -> None:
        """New weights, and those that a restarted process begins with, lie in this memory from now on.

        Raises:
            UserError: its weights are not those of the model; one is named.
        """
        if problem := layouts_differ(memory.layout.tensors, read_shapes(self._model_path, self._tied)):
            raise UserError(f"weight update: {problem}")
        self._memory = memory
        self._start = replace(self._start, memory=memory.layout)
        self._process.send(AttachMemory(memory.layout))

    def load_from_memory(self, names: Sequence[str]) -> None:
        """Load these weights, which lie in the memory; does not wait. The first call of an update wakes the engine.

        Raises:
            RuntimeError: requests are unfinished.
        """
        self._require_idle("update the weights")
        self._process.send(LoadFromMemory(tuple(names)))

    def load_from_handles(self, handles: Sequence[tuple[str, Any]]) -> None:
        """Load weights through CUDA IPC and wait until they are read. GPU only: this has not been run.

        Args:
            handles: names, each with the arguments of torch's ``rebuild_cuda_tensor``.

        Raises:
            RuntimeError: requests are unfinished.
        """
        self._require_idle("update the weights")
        if self._load_error is not None:
            return
        try:
            self._request(LoadFromHandles(handles), Loaded)
        except EndedError as error:  # other ranks gather with this one to the end; it is replaced then
            self._load_error = str(error)

    def finish_load(self) -> None:
        """Wait until all weights are loaded, and forget every cached prefix.

        Raises:
            UserError: the process died or hung again and again.
        """
        try:
            if self._load_error is not None:
                raise EndedError(self._load_error)
            self._request(FinishLoad(), Loaded)
        except EndedError as error:
            self._load_error = None
            self._replace(str(error))

    def close(self) -> None:
        """End the process and drop every request; the engine is of no use afterwards."""
        self._process.kill()
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
            self._drawn.pop(request.request_id, None)
            self._restarts_in_a_row = 0
            self.stats.sampled_tokens += len(answer.tokens)
            self.stats.prefill_tokens += len(request.prefix) - answer.cached_tokens
            self.stats.cached_prefix_tokens += answer.cached_tokens
            rollouts.append(
                Rollout(request.request_id, answer.tokens, answer.logprobs, answer.finish_reason, answer.kept)
            )
        return rollouts

    def _refuse_silence(self) -> None:
        silent_s = time.monotonic() - self._process.last_heard
        if silent_s > self._limits.hang_timeout_s:
            raise EndedError(f"it was silent for {silent_s:.0f} s (rollout.vllm.hang_timeout_s)")

    def _request(self, message: ToProcess, answer: type[Answer]) -> Answer:
        """Send a message and wait until it is answered; rollouts that arrive before are kept.

        Raises:
            EndedError: the process died, gave up or hung.
        """
        self._process.last_heard = time.monotonic()  # until now it may rightly have been silent
        self._process.send(message)
        while not isinstance(said := self._process.receive(1.0), answer):
            if said is not None:
                self._finished += self._take(said)
            self._refuse_silence()
        return said

    # --- starting again ------------------------------------------------------------------------------------------

    def _await_ready(self) -> None:
        """Wait until the engine can sample.

        Raises:
            RefusedError: vLLM refuses to start.
            EndedError: the process died without a word, or is not ready in time.
        """
        deadline = time.monotonic() + self._limits.start_timeout_s
        while not isinstance(message := self._process.receive(1.0), Ready):
            if isinstance(message, Failed):
                raise RefusedError(message.reason)
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
            if self._memory is not None and self._memory.state == "partial":
                raise UserError(
                    f"the vLLM process ended: {reason}; the last update of the weights did not come to its end, so"
                    f" that there are none to start it again with; its log is {self._log_path}"
                )
            if self._restarts_in_a_row == self._limits.max_restarts:
                waiting = len(self._unanswered)
                self._forget()
                raise UserError(
                    f"the vLLM process ended: {reason}; it was restarted {self._restarts_in_a_row} times without "
                    f"sampling anything in between (rollout.vllm.max_restarts={self._limits.max_restarts}), "
                    f"{waiting} requests were waiting; its log is {self._log_path}"
                )
            self.restarts += 1
            self._restarts_in_a_row += 1
            complete = self._memory is not None and self._memory.state == "complete"
            self._start = replace(self._start, sampling=self.sampling, from_memory=complete)
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


def _numbered(number: int, request: RolloutRequest) -> NumberedRequest:
    return NumberedRequest(number, request.prefix, request.max_new_tokens, request.seed)
