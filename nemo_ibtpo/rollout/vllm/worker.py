"""The program that owns vLLM: ``python -m nemo_ibtpo.rollout.vllm.worker <descriptor of a socket>``.

It reads messages while it samples, so that a request joins the running batch at the next step. It ends when its owner
closes the socket.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.vllm.compat import CPU_BLOCK_TOKENS
from nemo_ibtpo.rollout.vllm.messages import (
    Abort,
    Alive,
    AttachMemory,
    Cut,
    CutOff,
    Drawn,
    Failed,
    Finished,
    FinishedRequest,
    FinishLoad,
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
from nemo_ibtpo.tree.node import FinishReason

_ALIVE_PERIOD_S = 1.0
_REPORT_PERIOD_S = 0.02
_STREAM_TOKENS = 8  # how far a request is becomes known after its first token, and then every so many


class Worker:
    """vLLM's engine, and the requests that it serves."""

    def __init__(self, connection: Connection, start: Start) -> None:
        import vllm

        self._connection = connection
        self._max_kept = start.max_kept
        self._on_gpu = start.device == "cuda"
        self._asleep = False
        self._loading = False
        self._last_sent = time.monotonic()
        self._numbers: set[int] = set()
        self._latest: dict[int, Any] = {}  # what vLLM said last of a request that runs
        self._reports = False
        self._reported: dict[int, int] = {}
        self._last_report = 0.0
        self._llm = vllm.LLM(**_engine_arguments(start))
        self._set_sampling(start.sampling)
        if start.memory is not None:
            self._llm.collective_rpc("attach_memory", args=(start.memory,))
            if start.from_memory:
                self._load("load_from_memory", [tensor.name for tensor in start.memory.tensors])
                self._finish_load()
        self._send(Ready())

    def serve(self) -> NoReturn:
        """Sample whenever there is something to sample; read messages in between.

        Raises:
            EOFError: the owner has closed the connection.
        """
        while True:
            while self._connection.poll(0 if self._numbers else None):
                self._handle(self._connection.recv())
            self._step()

    def _handle(self, message: ToProcess) -> None:
        if isinstance(message, Submit):
            for request in message.requests:
                self._add(request)
        elif isinstance(message, SetSampling):
            self._set_sampling(message.sampling)
        elif isinstance(message, Abort):
            self._abort()
        elif isinstance(message, Report):
            self._reports = True
        elif isinstance(message, Cut):
            self._cut(message.at_least)
        elif isinstance(message, Sleep):
            if self._on_gpu:  # vLLM has no sleep on a CPU
                self._llm.sleep(level=2)
                self._asleep = True
            self._send(Slept())
        elif isinstance(message, AttachMemory):
            self._llm.collective_rpc("attach_memory", args=(message.memory,))
        elif isinstance(message, LoadFromMemory):
            self._load("load_from_memory", message.names)
        elif isinstance(message, LoadFromHandles):
            self._load("load_from_handles", message.handles)
            self._send(Loaded())
        elif isinstance(message, FinishLoad):
            self._finish_load()
            self._send(Loaded())

    def _set_sampling(self, params: SamplingParams) -> None:
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._stops = bool(params.stop)
        self._with_kept = self._max_kept > 0 and params.is_truncated
        self._sampling = VLLMSamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            repetition_penalty=params.repetition_penalty,
            stop=list(params.stop),
            stop_token_ids=list(params.eos_token_ids),
            ignore_eos=True,  # vLLM's idea of the end; ours stands above
            logprobs=self._max_kept if self._with_kept else 0,  # of so many likeliest tokens beside the sampled one
            flat_logprobs=True,  # an object for each of them takes milliseconds of every decoding step
            detokenize=self._stops,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.CUMULATIVE,
            stream_interval=_STREAM_TOKENS,
        )

    def _add(self, request: NumberedRequest) -> None:
        params = self._sampling.clone()
        params.seed, params.max_tokens = request.seed, request.max_new_tokens
        self._llm.llm_engine.add_request(str(request.number), {"prompt_token_ids": list(request.prefix)}, params)
        self._numbers.add(request.number)

    def _step(self) -> None:
        if not self._numbers:
            return
        outputs = self._llm.llm_engine.step()
        finished = [_finished(output, with_kept=self._with_kept) for output in outputs if output.finished]
        self._latest.update((int(output.request_id), output) for output in outputs)
        for request in finished:
            self._numbers.discard(request.number)
            self._latest.pop(request.number, None)
            self._reported.pop(request.number, None)
        if finished:
            self._send(Finished(finished))
        if self._reports and time.monotonic() - self._last_report > _REPORT_PERIOD_S:
            self._report()
        elif time.monotonic() - self._last_sent > _ALIVE_PERIOD_S:
            self._send(Alive())

    def _report(self) -> None:
        drawn = {number: len(output.outputs[0].token_ids) for number, output in self._latest.items()}
        news = {number: count for number, count in drawn.items() if count > self._reported.get(number, 0)}
        self._last_report = time.monotonic()
        if news:
            self._reported.update(news)
            self._send(Drawn(news))

    def _cut(self, at_least: Mapping[int, int]) -> None:
        def missing(number: int) -> bool:
            output = self._latest.get(number)
            return (0 if output is None else len(output.outputs[0].token_ids)) < at_least.get(number, 0)

        while any(map(missing, self._numbers)):
            self._step()
        cut_off = {}
        for number in self._numbers:
            output = self._latest.get(number)
            cut_off[number] = ((), ()) if output is None else _sampled(output.outputs[0])
        self._abort()
        self._send(CutOff(cut_off))

    def _abort(self) -> None:
        self._llm.llm_engine.abort_request([str(number) for number in self._numbers])
        self._numbers.clear()
        self._latest.clear()
        self._reported.clear()

    def _load(self, how: str, weights: Sequence[Any]) -> None:
        if not self._loading:
            self._wake("weights")
            self._loading = True
        self._llm.collective_rpc(how, args=(weights,))

    def _finish_load(self) -> None:
        """Keys and values of the old weights are of no use; memory for new ones is taken only now."""
        self._llm.collective_rpc("finish_load")
        self._loading = False
        self._wake("kv_cache")
        self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")

    def _wake(self, what: str) -> None:
        if self._asleep:
            self._llm.wake_up(tags=[what])

    def _send(self, message: Any) -> None:
        self._connection.send(message)
        self._last_sent = time.monotonic()


def _engine_arguments(start: Start) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": start.model_path,
        "tokenizer": start.model_path,
        "dtype": start.dtype,
        "tensor_parallel_size": start.tensor_parallel_size,
        "max_model_len": start.max_model_len,
        "hf_overrides": dict(start.hf_overrides),
        "max_num_seqs": start.max_batch_size,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from
        "max_logprobs": start.max_kept,
        "generation_config": "vllm",  # the run's sampling parameters, not the model's
        "load_format": "dummy" if start.from_memory else "safetensors",
        "worker_extension_cls": "nemo_ibtpo.rollout.vllm.extension.WeightLoader",
        "disable_log_stats": True,
        "seed": 0,
    }
    if start.device == "cpu":
        cache = {"kv_cache_memory_bytes": int(start.kv_cache_gib * 2**30), "block_size": CPU_BLOCK_TOKENS}
        return arguments | cache | {"enforce_eager": True}
    return arguments | {
        "gpu_memory_utilization": start.gpu_memory_utilization,
        "enforce_eager": start.enforce_eager,
        "enable_sleep_mode": True,
    }


def _finished(output: Any, *, with_kept: bool) -> FinishedRequest:
    """What vLLM's ``RequestOutput`` says of a finished request."""
    answer = output.outputs[0]
    kept = _kept(answer.logprobs) if with_kept else ()
    tokens, logprobs = _sampled(answer)
    reason: FinishReason
    if answer.finish_reason == "length":
        reason = "length"
    elif answer.finish_reason == "stop":
        reason = "stop" if isinstance(answer.stop_reason, str) else "eos"
    else:
        raise RuntimeError(f"vLLM ended request {output.request_id} with {answer.finish_reason!r}")
    return FinishedRequest(int(output.request_id), tokens, logprobs, reason, kept, output.num_cached_tokens or 0)


def _sampled(answer: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Token ids and their log-probabilities of vLLM's ``CompletionOutput``."""
    values, starts = answer.logprobs.logprobs, answer.logprobs.start_indices  # the sampled token's comes first
    return tuple(answer.token_ids), tuple(values[start] for start in starts[: len(answer.token_ids)])


def _kept(logprobs: Any) -> tuple[bytes, ...]:
    """What each token was drawn from: of the likeliest tokens those that the filters left a probability.

    Args:
        logprobs: vLLM's ``FlatLogprobs``: of each token the sampled one, then as many of the likeliest.
    """
    ids = np.array(logprobs.token_ids, dtype=np.int32).reshape(len(logprobs), -1)
    left = np.array(logprobs.logprobs).reshape(ids.shape) > -math.inf
    left[:, 0] &= (ids[:, 1:] != ids[:, :1]).all(axis=1)  # the sampled token is one of the likeliest, too, mostly
    ids = np.sort(np.where(left, ids, np.iinfo(np.int32).max), axis=1)
    return tuple(row[:count].tobytes() for row, count in zip(ids, left.sum(axis=1), strict=True))


def main(descriptor: int) -> None:
    """Serve the owner at the other end of the socket until it closes it."""
    faulthandler.enable()
    connection = Connection(descriptor)
    try:
        Worker(connection, connection.recv()).serve()
    except (EOFError, ConnectionError):
        os._exit(0)  # the owner is gone; nothing is left to be saved
    except BaseException as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        connection.send(Failed(f"{type(error).__name__}: {lines[0] if lines else 'no message'}"))
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
