"""The engine on real vLLM: what training trusts it with, and what it does when its process dies or hangs.

One process serves most tests, because starting one takes many seconds; the tests that end it come last. Log-
probabilities are compared with transformers' forward pass without a cache, in float32. Not exercised: GPUs, and with
them CUDA IPC, sleep, and tensor parallelism; speed (benchmarks/).
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from growth_toys import SAMPLER
from local_weights import LocalWeights, one_rank
from strategies import IB
from toy_models import VOCAB, hf_weights, random_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast, RepetitionPenaltyLogitsProcessor

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RolloutConfig, TransformersEngineConfig, VLLMEngineConfig
from nemo_ibtpo.rollout.embedded.sampling import sampling_logprobs
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.factory import load_model
from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.shared_memory import SharedMemoryTransport
from nemo_ibtpo.rollout.vllm import checks
from nemo_ibtpo.rollout.vllm import engine as vllm_engine
from nemo_ibtpo.rollout.vllm.engine import VLLMEngine
from nemo_ibtpo.rollout.vllm.process import VLLMProcess
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest
from nemo_ibtpo.tree.steps import StepSplitter
from nemo_ibtpo.tree.tree import Tree

CONFIG = RolloutConfig(
    engine="vllm",
    tensor_parallel_size=1,
    num_replicas=None,
    max_new_tokens=60,
    temperature=1.0,
    top_p=1.0,
    top_k=20,  # the largest set that a rollout can say its tokens were drawn from
    repetition_penalty=1.0,
    stop=[],
    max_batch_size=16,
    transformers=TransformersEngineConfig(cache_tokens=1),
    vllm=VLLMEngineConfig(
        gpu_memory_utilization=0.5,
        kv_cache_gib=0.05,
        enforce_eager=True,
        start_timeout_s=600.0,
        hang_timeout_s=60.0,
        max_restarts=3,
    ),
)
OF_THE_RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "CUDA_DEVICE_MAX_CONNECTIONS")
PLAIN = SamplingParams(eos_token_ids=(0,))
PREFIX = tuple(range(1, 41))  # a whole block of the cache and some more


def toy(seed: int) -> PreTrainedModel:
    return random_model("qwen3", seed=seed, head_dim=32)  # vLLM's CPU attention takes no smaller heads


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def untied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: weight for name, weight in hf_weights(model).items() if name not in tied}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path_factory.mktemp("vllm") / "model"
    toy(0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def start(
    model_dir: Path, config: RolloutConfig = CONFIG, max_model_len: int = 128, dtype: torch.dtype = torch.float32
) -> VLLMEngine:
    return VLLMEngine(
        model_dir,
        config,
        sampling=PLAIN,
        dtype=dtype,
        device=torch.device("cpu"),
        max_model_len=max_model_len,
        log_path=model_dir.parent / "vllm.log",
        return_kept=True,
    )


@pytest.fixture(scope="module")
def started(model_dir: Path) -> Iterator[VLLMEngine]:
    """As a rank of torchrun would start it; the process must see nothing of that."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in OF_THE_RANK:
            patch.setenv(name, "1")
        engine = start(model_dir)
    yield engine
    engine.close()


Publish = Callable[[dict[str, torch.Tensor]], None]


def connect(engine: VLLMEngine, weights: dict[str, torch.Tensor]) -> Publish:
    """Gives the engine new weights through the memory of the host, as a run does."""
    transport = SharedMemoryTransport(HostWriter(LocalWeights(weights), [0], bucket_bytes=4096))
    transport.attach(engine)
    return lambda new: transport.publish(LocalWeights(new))


@pytest.fixture(scope="module")
def publish(started: VLLMEngine) -> Iterator[Publish]:
    with one_rank():
        yield connect(started, weights_of(toy(0)))


@pytest.fixture
def engine(started: VLLMEngine, publish: Publish) -> VLLMEngine:
    """The shared engine with the weights of ``toy(0)`` and plain sampling, whatever ran before."""
    started.set_sampling(PLAIN)
    publish(weights_of(toy(0)))
    return started


def request(
    request_id: int, prefix: Iterable[int] = PREFIX, max_new_tokens: int = 20, seed: int | None = None
) -> RolloutRequest:
    return RolloutRequest(request_id, tuple(prefix), max_new_tokens, request_id if seed is None else seed)


def drain(engine: VLLMEngine, requests: Sequence[RolloutRequest]) -> dict[int, Rollout]:
    engine.submit(requests)
    rollouts: list[Rollout] = []
    while engine._unanswered:
        rollouts += engine.poll()
    assert len(rollouts) == len(requests)
    return {rollout.request_id: rollout for rollout in rollouts}


def tokens_of(rollouts: dict[int, Rollout]) -> dict[int, tuple[int, ...]]:
    return {request_id: rollout.tokens for request_id, rollout in rollouts.items()}


@torch.no_grad()
def assert_logprobs_match(
    model: PreTrainedModel,
    requests: Iterable[RolloutRequest],
    rollouts: dict[int, Rollout],
    params: SamplingParams,
    atol: float = 1e-3,
) -> None:
    for one in requests:
        tokens = rollouts[one.request_id].tokens
        logits = model(torch.tensor([one.prefix + tokens]), use_cache=False).logits[0, len(one.prefix) - 1 : -1]
        expected = sampling_logprobs(logits, params)[torch.arange(len(tokens)), list(tokens)]
        np.testing.assert_allclose(rollouts[one.request_id].logprobs, expected.float().numpy(), atol=atol)


# --- weights and log-probabilities ---------------------------------------------------------------------------------


def test_first_weights_are_those_of_the_directory(started: VLLMEngine) -> None:
    requests = [request(i) for i in range(4)]
    assert_logprobs_match(toy(0), requests, drain(started, requests), PLAIN)


def test_logprobs_follow_an_update_and_no_old_prefix_is_used(engine: VLLMEngine, publish: Publish) -> None:
    """Fails if the prefix cache outlives the update: the prefix was computed under the old weights."""
    requests = [request(i) for i in range(8)]
    before = engine.stats.cached_prefix_tokens
    drain(engine, requests)
    drain(engine, requests)
    assert engine.stats.cached_prefix_tokens > before  # there is something to forget
    publish(weights_of(toy(1)))
    assert_logprobs_match(toy(1), requests, drain(engine, requests), PLAIN)


@torch.no_grad()
def test_a_rollout_says_what_its_tokens_were_drawn_from(engine: VLLMEngine) -> None:
    params, sizes = SamplingParams(temperature=0.3, top_k=20, top_p=0.9, eos_token_ids=(0,)), set()
    assert {rollout.kept for rollout in drain(engine, [request(0)]).values()} == {()}  # the whole vocabulary
    engine.set_sampling(params)
    requests = [request(i) for i in range(6)]
    rollouts = drain(engine, requests)
    assert_logprobs_match(toy(0), requests, rollouts, params)
    for one in requests:
        tokens, kept = rollouts[one.request_id].tokens, rollouts[one.request_id].kept
        logits = toy(0)(torch.tensor([one.prefix + tokens]), use_cache=False).logits[0, len(one.prefix) - 1 : -1]
        for token, row, expected, own in zip(tokens, logits, sampling_logprobs(logits, params), kept, strict=True):
            ids = np.frombuffer(own, np.int32).tolist()
            sizes.add(len(ids))
            assert token in ids
            # A token at the edge of the set may be in or out, in the rounding of its probability.
            assert row[ids].div(0.3).logsumexp(0).item() == pytest.approx(
                row[expected > -torch.inf].div(0.3).logsumexp(0).item(), abs=2e-2
            )
    assert len(sizes) > 3 and max(sizes) <= 20


@torch.no_grad()
def test_repetitions_are_penalized(engine: VLLMEngine) -> None:
    """The likeliest token after the penalty that transformers' own processor puts on prompt and response."""
    engine.set_sampling(SamplingParams(top_k=1, repetition_penalty=1.3))
    one = request(0)
    tokens, penalize = drain(engine, [one])[0].tokens, RepetitionPenaltyLogitsProcessor(1.3)
    sequence = torch.tensor([one.prefix + tokens])
    for place, logits in enumerate(toy(0)(sequence, use_cache=False).logits[0, len(one.prefix) - 1 : -1]):
        assert penalize(sequence[:, : len(one.prefix) + place], logits[None]).argmax() == tokens[place]


# Positions of which one head of 32 channels has 16 frequencies, trained on 16 tokens.
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 16,
    "long_factor": [1.0 + 0.2 * i for i in range(16)],
    "original_max_position_embeddings": 16,
    "attention_factor": 1.3,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 16, "rope_theta": 500.0}


def scaled(directory: Path, model: PreTrainedModel, rope: dict[str, Any], positions: int) -> PreTrainedModel:
    """Write the model's weights with other rotary positions; what transformers makes of it at 128 tokens."""
    model.save_pretrained(directory)
    file = directory / "config.json"
    values = json.loads(file.read_text()) | {"rope_parameters": rope, "max_position_embeddings": positions}
    file.write_text(json.dumps(values))
    return load_model(directory, dtype=model.dtype, device="cpu", max_model_len=128).eval()


@pytest.mark.parametrize(
    ("family", "dtype", "atol", "rope", "positions"),
    [
        ("qwen3", torch.bfloat16, 0.1, YARN, 16),
        ("qwen3_moe", torch.float32, 1e-3, LONGROPE, 128),
    ],
    ids=["bfloat16 and yarn", "experts and longrope"],
)
def test_other_models_follow_an_update(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    family: str,
    dtype: torch.dtype,
    atol: float,
    rope: dict[str, Any],
    positions: int,
) -> None:
    """bfloat16 is packed in another form, and experts are stacked; vLLM's own reload leaves the old ones there.

    Their rotary positions are scaled: all sequences are rotated as one of the longest, 128 tokens.
    """
    pytest.importorskip("vllm", reason="vLLM is not installed")
    old, new = (
        scaled(tmp_path / name, random_model(family, seed, dtype, head_dim=32), rope, positions)
        for seed, name in enumerate(("model", "other"))
    )
    tokenizer.save_pretrained(tmp_path / "model")
    engine = start(tmp_path / "model", dtype=dtype)
    try:
        requests = [request(i) for i in range(8)]
        drain(engine, requests)
        with one_rank():
            publish = connect(engine, untied(old))
            for model in (new, old):
                publish(untied(model))
                assert_logprobs_match(model, requests, drain(engine, requests), PLAIN, atol)
    finally:
        engine.close()


def test_logprobs_are_of_the_sampling_distribution(engine: VLLMEngine) -> None:
    params = replace(PLAIN, temperature=0.7, top_p=0.9, top_k=12)
    engine.set_sampling(params)
    requests = [request(i, range(1 + i, 9 + 2 * i)) for i in range(8)]
    assert_logprobs_match(toy(0), requests, drain(engine, requests), params)


@pytest.mark.parametrize("change", ["missing", "unknown", "has shape"])
def test_weights_that_do_not_fit_are_named(engine: VLLMEngine, change: str) -> None:
    """When they are attached, before any is trained; the engine stays as it is."""
    weights = weights_of(toy(1))
    name = list(weights)[7]
    if change == "missing":
        del weights[name]
    elif change == "unknown":
        name = "model.layers.0.extra"
        weights[name] = torch.ones(2)
    else:
        weights[name] = weights[name][..., :1].clone()
    with pytest.raises(UserError, match=rf"(?=.*{re.escape(name)})(?=.*{change})") as error:
        connect(engine, weights)
    assert "\n" not in str(error.value)
    requests = [request(i) for i in range(4)]
    assert_logprobs_match(toy(0), requests, drain(engine, requests), PLAIN)


def test_weights_that_are_not_finite_are_told_and_leave_no_trace(engine: VLLMEngine, publish: Publish) -> None:
    requests = [request(i) for i in range(3)]
    good = drain(engine, requests)
    publish({name: torch.full_like(w, float("nan")) for name, w in weights_of(toy(0)).items()})
    engine.submit(requests)
    with pytest.raises(UserError, match="logits are not finite"):
        while engine._unanswered:
            engine.poll()
    publish(weights_of(toy(0)))
    assert tokens_of(drain(engine, requests)) == tokens_of(good)


# --- requests ------------------------------------------------------------------------------------------------------


def test_a_late_request_joins_the_running_batch(engine: VLLMEngine) -> None:
    engine.set_sampling(SamplingParams())  # no end-of-sequence token: the lengths are known
    engine.submit([request(0, max_new_tokens=88)])
    engine.submit([request(1, max_new_tokens=2)])
    order = []
    while engine._unanswered:
        order += [rollout.request_id for rollout in engine.poll()]
    assert order == [1, 0]


def test_a_seed_means_one_rollout(engine: VLLMEngine) -> None:
    first = drain(engine, [request(i, seed=i % 4 + 2**63 - 4) for i in range(8)])
    again = drain(engine, [request(i, seed=i % 4 + 2**63 - 4) for i in range(8)])
    assert tokens_of(first) == tokens_of(again)
    assert len(set(tokens_of(first).values())) == 4


@pytest.mark.parametrize("killed", [False, True])
def test_cut_requests_have_the_first_tokens_of_their_rollouts(engine: VLLMEngine, killed: bool) -> None:
    """Also when the process dies at that moment and has to sample them once more."""
    engine.set_sampling(SamplingParams())  # no end-of-sequence token: the lengths are known
    requests = [request(i, max_new_tokens=40 if i else 4) for i in range(14)]  # two wait, twelve run
    whole = drain(engine, requests)
    sampled = engine.stats.sampled_tokens
    engine.submit(requests)
    drawn: dict[int, int] = {}
    rollouts: list[Rollout] = []
    while drawn.get(1, 0) < 10:
        rollouts += engine.poll()
        drawn |= engine.progress(dict.fromkeys(range(14), 0))
    if killed:
        os.kill(engine.pid, signal.SIGKILL)
    cut = engine.cut({1: drawn[1], 2: 15, 13: 3})
    rollouts += engine.poll()
    assert sorted([one.request_id for one in [*cut, *rollouts]]) == list(range(14))
    for one in cut:
        length = len(one.tokens)
        assert (one.tokens, one.logprobs) == (
            whole[one.request_id].tokens[:length],
            pytest.approx(whole[one.request_id].logprobs[:length], abs=1e-4),
        )
    lengths = {one.request_id: len(one.tokens) for one in cut}
    assert lengths[1] >= drawn[1] and lengths[2] >= 15 and lengths[13] >= 3
    assert all(drawn[number] <= 40 for number in drawn)
    assert engine.stats.sampled_tokens - sampled == sum(len(one.tokens) for one in [*cut, *rollouts])
    engine.sleep()  # it is idle
    assert tokens_of(drain(engine, [request(1)])) == {1: whole[1].tokens[:20]}


def test_responses_end_where_the_embedded_engine_ends_them(
    engine: VLLMEngine, ids: Callable[..., list[int]], tokenizer: PreTrainedTokenizerFast
) -> None:
    """At the first of: end-of-sequence token, stop string (the token that completes it kept), length limit."""
    stops = ("é", "ab", "1\n")
    engine.set_sampling(SamplingParams(temperature=1.5, stop=stops, eos_token_ids=(0, 5)))
    # The prefix ends within two of the stop strings, which must not count.
    requests = [request(i, [*PREFIX, *ids("Ã", "1", "a")], max_new_tokens=1 + i % 40) for i in range(120)]
    reasons = set()
    for rollout in drain(engine, requests).values():
        ends = [
            tokens[-1] in (0, 5) or any(stop in tokenizer.decode(tokens) for stop in stops)
            for tokens in (list(rollout.tokens[: n + 1]) for n in range(len(rollout.tokens)))
        ]
        assert not any(ends[:-1]), rollout
        expected = "length"
        if ends[-1]:
            expected = "eos" if rollout.tokens[-1] in (0, 5) else "stop"
        assert rollout.finish_reason == expected, rollout
        reasons.add(rollout.finish_reason)
    assert reasons == {"eos", "stop", "length"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(1, ()), "the prefix is empty"),
        (request(1, max_new_tokens=100), r"40 \+ max_new_tokens 100 = 140 tokens, but max_model_len is 128"),
        (request(1, (3, VOCAB)), f"token id {VOCAB} lies outside the model's vocabulary of {VOCAB}"),
        (request(0), "request 0 is already waiting or running"),
    ],
)
def test_a_bad_request_is_refused_and_none_of_its_batch_taken(
    engine: VLLMEngine, bad: RolloutRequest, message: str
) -> None:
    engine.submit([request(0)])
    with pytest.raises(UserError, match=message):
        engine.submit([request(7), bad])
    with pytest.raises(RuntimeError, match="1 requests are unfinished"):
        engine.set_sampling(PLAIN)
    assert list(drain_rest(engine)) == [0]


def drain_rest(engine: VLLMEngine) -> dict[int, Rollout]:
    rollouts: list[Rollout] = []
    while engine._unanswered:
        rollouts += engine.poll()
    return {rollout.request_id: rollout for rollout in rollouts}


# --- trees, and what happens to them -------------------------------------------------------------------------------


class Verifier:
    """Right is a response with an even sum of token ids."""

    def __init__(self) -> None:
        self.answers: list[tuple[Hashable, float]] = []

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        self.answers.append((key, float(sum(response_tokens) % 2 == 0)))

    def poll(self) -> list[tuple[Hashable, float]]:
        answers, self.answers = self.answers, []
        return answers


def grow_trees(
    engine: VLLMEngine,
    tokenizer: PreTrainedTokenizerFast,
    max_in_flight: int = 8,
    on_progress: Callable | None = None,
    window: int | None = None,
) -> list[Tree]:
    sampler = replace(SAMPLER, max_sequences_per_tree=window, max_trees_in_flight=max_in_flight)
    return grow(
        [GrowthTask(str(i), (*PREFIX[: 20 + i], i)) for i in range(8)],
        source=engine,
        rewards=Verifier(),
        strategy=make_strategy(sampler, IB, 40),
        splitter=StepSplitter(tokenizer),
        max_new_tokens=40,
        seed=3,
        max_in_flight=max_in_flight,
        on_progress=on_progress,
    )


def shape_of(tree: Tree) -> list[tuple[tuple[int, ...], int | None, int, float | None]]:
    return [(node.tokens, node.parent, node.draws, node.reward) for node in tree.nodes]


def test_trees_do_not_depend_on_how_many_grow_at_once(engine: VLLMEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    together = grow_trees(engine, tokenizer, max_in_flight=8)
    assert all(tree.num_trajectories == 12 for tree in together)
    assert [shape_of(tree) for tree in grow_trees(engine, tokenizer, max_in_flight=1)] == [
        shape_of(tree) for tree in together
    ]


def test_with_a_window_trees_do_not_depend_on_how_many_grow_at_once_either(
    engine: VLLMEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    together = [shape_of(tree) for tree in grow_trees(engine, tokenizer, window=4)]
    assert [shape_of(tree) for tree in grow_trees(engine, tokenizer, max_in_flight=2, window=4)] == together
    assert [shape_of(tree) for tree in grow_trees(engine, tokenizer)] != together


def test_nothing_of_torchrun_and_megatron_reaches_the_process(started: VLLMEngine) -> None:
    environment = Path(f"/proc/{started.pid}/environ").read_bytes().decode()
    for name in OF_THE_RANK:
        assert f"\0{name}=" not in f"\0{environment}"


def test_sleep_waits_until_the_engine_sleeps(engine: VLLMEngine) -> None:
    """The actor takes the GPU's memory next. The process is held still, so that it cannot answer."""
    os.kill(engine.pid, signal.SIGSTOP)
    going_to_sleep = Thread(target=engine.sleep)
    going_to_sleep.start()
    going_to_sleep.join(timeout=0.5)
    still_waits = going_to_sleep.is_alive()
    os.kill(engine.pid, signal.SIGCONT)
    going_to_sleep.join()
    assert still_waits
    requests = [request(i) for i in range(2)]  # a CPU engine keeps its memory
    assert_logprobs_match(toy(0), requests, drain(engine, requests), PLAIN)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_trees_survive_the_process(
    engine: VLLMEngine,
    publish: Publish,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    signal_number: signal.Signals,
) -> None:
    """In the middle of growing, with weights that are nowhere on disk."""
    publish(weights_of(toy(2)))
    counted = [engine.stats.sampled_tokens]
    undisturbed = grow_trees(engine, tokenizer)
    counted.append(engine.stats.sampled_tokens)
    struck: list[int] = []

    def strike(progress: object) -> None:
        if not struck and progress.trajectories >= 30:  # type: ignore[attr-defined]
            struck.append(engine.pid)
            os.kill(engine.pid, signal_number)

    # A silence of a few seconds is a hang here; starting again has a limit of its own.
    monkeypatch.setattr(engine, "_limits", replace(engine._limits, hang_timeout_s=5.0))
    restarts = engine.restarts
    disturbed = grow_trees(engine, tokenizer, on_progress=strike)
    assert struck and engine.pid != struck[0]
    assert engine.restarts == restarts + 1
    assert [shape_of(tree) for tree in disturbed] == [shape_of(tree) for tree in undisturbed]
    counted.append(engine.stats.sampled_tokens)
    assert counted[2] - counted[1] == counted[1] - counted[0], "a rollout was counted twice or not at all"
    assert not Path(f"/proc/{struck[0]}").exists()


def test_a_restart_that_fails_counts_as_a_try(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where memory of the old process is not free yet: the next try finds it free."""
    requests = [request(i) for i in range(4)]
    tokens = tokens_of(drain(engine, requests))
    file = Path(engine._start.model_path) / "config.json"
    original = file.read_text()
    file.write_text(json.dumps(json.loads(original) | {"architectures": ["NobodyForCausalLM"]}))
    starts: list[float] = []

    class Mended(VLLMProcess):
        def __init__(self, *arguments: Any) -> None:
            starts.append(time.monotonic())
            if len(starts) == 2:
                file.write_text(original)
            super().__init__(*arguments)

    monkeypatch.setattr(vllm_engine, "VLLMProcess", Mended)
    restarts = engine.restarts
    engine.submit(requests)
    os.kill(engine.pid, signal.SIGKILL)
    assert tokens_of(drain_rest(engine)) == tokens
    assert len(starts) == 2 and engine.restarts == restarts + 2


def test_a_process_that_dies_again_and_again_ends_the_run(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_limits", replace(engine._limits, max_restarts=0))
    engine.submit([request(0, max_new_tokens=80)])
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"killed by SIGKILL; .*max_restarts=0.*1 requests were waiting.*vllm\.log"):
        while True:
            engine.poll()


# --- refusals before anything is started ---------------------------------------------------------------------------


def test_what_vllm_cannot_serve_is_refused_at_once(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"kv_cache_gib=0\.0001 holds the keys and values of 52 tokens, .* up to 128"):
        start(model_dir, replace(CONFIG, vllm=replace(CONFIG.vllm, kv_cache_gib=0.0001)))
    with pytest.raises(UserError, match="max_model_len 300 must lie between 2 and the model's 256 positions"):
        start(model_dir, max_model_len=300)
    with pytest.raises(UserError, match="tensor_parallel_size=2: on a CPU an engine is one process"):
        start(model_dir, replace(CONFIG, tensor_parallel_size=2))
    file = model_dir / "config.json"
    original = file.read_text()
    file.write_text(json.dumps(json.loads(original) | {"head_dim": 16}))
    with pytest.raises(UserError, match=r"no attention for heads of 16 channels.*rollout=transformers"):
        start(model_dir)
    file.write_text(original)
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vLLM is not installed.*rollout=transformers"):
        start(model_dir)


def test_a_process_that_cannot_start_says_why(model_dir: Path, tmp_path: Path) -> None:
    """Real vLLM, on a directory without a tokenizer or weights it could read."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    broken = tmp_path / "model"
    broken.mkdir()
    for file in model_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(UserError, match=r"vLLM does not start: .*its log is") as error:
        start(broken)
    assert "\n" not in str(error.value)


def test_the_devices_of_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica sees the GPUs of its ranks, under the names that this process knows them by."""
    devices = checks.visible_devices
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert devices(torch.device("cpu"), 1) is None
    assert devices(torch.device("cuda", 2), 2) == "6,7"
    with pytest.raises(UserError, match="from GPU 3 on there are 1"):
        devices(torch.device("cuda", 3), 2)
