"""Training trusts three things of its engine: the log-probabilities are those of the model, a seed means one rollout,
and no key or value of old weights or of another sequence is ever attended to.

Everything here runs real (tiny, random) models and compares them with transformers' own forward pass without any
cache. Speed is not tested, nor are models too large for one device, which this engine does not serve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from toy_models import VOCAB, config_of, hf_weights, random_model
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.embedded import engine as embedded_engine
from nemo_ibtpo.rollout.embedded.engine import TransformersEngine
from nemo_ibtpo.rollout.embedded.sampling import sampling_logprobs
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest

MakeEngine = Callable[..., TransformersEngine]
FAMILIES = ["llama", "qwen2", "qwen3"]


def request(
    request_id: int, prefix: Iterable[int] = (1, 2, 3), max_new_tokens: int = 12, seed: int | None = None
) -> RolloutRequest:
    return RolloutRequest(request_id, tuple(prefix), max_new_tokens, request_id if seed is None else seed)


def drain(engine: TransformersEngine, requests: Iterable[RolloutRequest] = ()) -> dict[int, Rollout]:
    engine.submit(list(requests))
    rollouts: dict[int, Rollout] = {}
    for _ in range(1000):
        if not engine._unfinished:
            return rollouts
        rollouts |= {rollout.request_id: rollout for rollout in engine.poll()}
    raise AssertionError("requests that never finish")


def tokens_of(rollouts: dict[int, Rollout]) -> dict[int, tuple[int, ...]]:
    return {request_id: rollout.tokens for request_id, rollout in rollouts.items()}


@torch.no_grad()
def assert_logprobs_match(
    model: PreTrainedModel, request: RolloutRequest, rollout: Rollout, params: SamplingParams
) -> None:
    """The rollout's log-probabilities against one plain forward pass over all of it."""
    sequence = torch.tensor([request.prefix + rollout.tokens], device=model.device)
    logits = model(sequence, use_cache=False).logits[0, len(request.prefix) - 1 : -1].cpu()
    if params.repetition_penalty != 1:
        penalize = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
        ends = range(len(request.prefix), sequence.shape[1])
        logits = torch.cat(
            [penalize(sequence[:, :end].cpu(), row[None]) for end, row in zip(ends, logits, strict=True)]
        )
    expected = sampling_logprobs(logits, params)[torch.arange(len(rollout.tokens)), list(rollout.tokens)]
    np.testing.assert_allclose(rollout.logprobs, expected.numpy(), atol=1e-4)
    assert len(rollout.kept) == (len(rollout.tokens) if params.is_truncated else 0)
    # What each token was drawn from is enough to know its log-probability.
    for token, logprob, row, kept in zip(rollout.tokens, rollout.logprobs, logits, rollout.kept, strict=False):
        ids = np.frombuffer(kept, np.int32).tolist()
        own = (row[ids] / params.temperature).log_softmax(-1)[ids.index(token)]
        assert own.item() == pytest.approx(logprob, abs=1e-4)


def prompts(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCAB, rng.integers(1, 20)).tolist()) for _ in range(n)]


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    return dict(random_model("qwen3", seed=seed).named_parameters())


# --- log-probabilities and the key/value cache ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_plain_forward_pass_through_branches(
    make_engine: MakeEngine, family: str, device: str
) -> None:
    model = random_model(family).to(device)
    params = SamplingParams(temperature=0.8, top_k=30, top_p=0.95, repetition_penalty=1.3)
    engine = make_engine(model, **dataclasses.asdict(params))
    requests = {i: request(i, prompt, 5 + i % 7) for i, prompt in enumerate(prompts(12)) for _ in range(2)}
    done = drain(engine, requests.values())
    for generation in range(3):  # branch inside rollouts, then inside the branches
        fresh = {}
        for i in list(requests)[-12:]:
            cut = len(done[i].tokens) * (generation + 1) // 4
            prefix = requests[i].prefix + done[i].tokens[: cut + 1]
            fresh[1000 * (generation + 1) + i] = request(1000 * (generation + 1) + i, prefix, 8)
        requests |= fresh
        done |= drain(engine, fresh.values())
    assert len(done) == len(requests) == 48
    assert engine.stats.cached_prefix_tokens > 36 * 3
    for request_id, rollout in done.items():
        assert_logprobs_match(model, requests[request_id], rollout, params)


@pytest.mark.parametrize("tokens_per_pass", [1, 10, 40])
def test_prefill_in_pieces(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, tokens_per_pass: int) -> None:
    monkeypatch.setattr(embedded_engine, "_PREFILL_TOKENS", tokens_per_pass)
    model = random_model("qwen3")
    requests = {i: request(i, prompt) for i, prompt in enumerate(prompts(6, seed=1))}
    for request_id, rollout in drain(make_engine(model), requests.values()).items():
        assert_logprobs_match(model, requests[request_id], rollout, SamplingParams())


def test_bfloat16_model(make_engine: MakeEngine) -> None:
    model = random_model("qwen3", dtype=torch.bfloat16)
    one = request(0, range(10))
    rollout = drain(make_engine(model), [one])[0]
    with torch.no_grad():
        logits = model(torch.tensor([one.prefix + rollout.tokens]), use_cache=False).logits[0, 9:-1].float()
    expected = logits.log_softmax(-1)[torch.arange(12), list(rollout.tokens)]
    np.testing.assert_allclose(rollout.logprobs, expected.numpy(), atol=0.1)


def test_next_tokens_follow_the_model(make_engine: MakeEngine) -> None:
    """Chi-square over many seeds, through the whole engine."""
    n, model, params = 4000, random_model("qwen3"), SamplingParams(temperature=0.9)
    engine = make_engine(model, temperature=0.9, max_batch_size=500, cache_tokens=501 * 64)
    drawn = [
        rollout.tokens[0] for rollout in drain(engine, [request(i, max_new_tokens=1) for i in range(n)]).values()
    ]
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]])).logits[0, -1:]
    expected = n * sampling_logprobs(logits, params)[0].exp().numpy().astype(np.float64)
    counts, common = np.bincount(drawn, minlength=VOCAB), expected >= 10
    assert common.sum() > 10
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum() + 1e-9)
    degrees = len(expected) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - degrees) < 5 * np.sqrt(2 * degrees)


# --- scheduling ----------------------------------------------------------------------------------------------------


def test_a_rollout_does_not_depend_on_its_company(make_engine: MakeEngine) -> None:
    requests = [request(i, prompt, 5 + i) for i, prompt in enumerate(prompts(20, seed=2))]
    together = drain(make_engine(), requests)
    reversed_and_narrow = drain(make_engine(max_batch_size=3), requests[::-1])
    assert tokens_of(together) == tokens_of(reversed_and_narrow)
    for one in requests[::4]:
        assert drain(make_engine(), [one])[one.request_id].tokens == together[one.request_id].tokens


def test_joining_while_others_run_changes_nothing(make_engine: MakeEngine) -> None:
    requests = [request(i, prompt, 20 + 3 * i) for i, prompt in enumerate(prompts(8, seed=3))]
    alone = {one.request_id: drain(make_engine(), [one])[one.request_id].tokens for one in requests}
    engine, joined = make_engine(), {}
    for one in requests:
        engine.submit([one])
        joined |= {rollout.request_id: rollout for rollout in engine.poll()}
    joined |= drain(engine)
    assert tokens_of(joined) == alone


def test_rollouts_are_decoded_side_by_side(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late request joins the running batch; it does not wait for it to end."""
    engine = make_engine()
    engine.submit([request(0, max_new_tokens=40)])
    assert engine.poll() == []
    engine.submit([request(1, max_new_tokens=2)])
    assert [rollout.request_id for rollout in engine.poll()] == [1]
    assert list(drain(engine)) == [0]


def test_cut_requests_have_the_first_tokens_of_their_rollouts(make_engine: MakeEngine) -> None:
    engine = make_engine()
    requests = [request(i, prefix, max_new_tokens=30) for i, prefix in enumerate(prompts(12))]
    whole = drain(engine, requests)
    engine.submit(requests)
    engine.poll()
    drawn = engine.progress(dict.fromkeys(range(12), 8))
    assert drawn and set(drawn.values()) == {8}  # the steps of a poll; some wait for a row
    assert engine.progress(dict.fromkeys(range(12), 9)) == {}
    cut = engine.cut({0: 8, 11: 9})
    rollouts = engine.poll()
    assert sorted([one.request_id for one in [*cut, *rollouts]]) == list(range(12))
    for one in cut:
        assert one.tokens == whole[one.request_id].tokens[: len(one.tokens)]
        assert len(one.logprobs) == len(one.tokens)
    (last,) = [one for one in [*cut, *rollouts] if one.request_id == 11]
    assert len(last.tokens) >= 9
    engine.sleep()  # it is idle
    assert tokens_of(drain(engine, requests)) == tokens_of(whole)


def test_a_seed_means_one_rollout(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = drain(engine, [request(i, seed=i % 4) for i in range(8)])
    again = drain(engine, [request(i, seed=i % 4) for i in range(8)])
    assert tokens_of(first) == tokens_of(again)
    assert len(set(tokens_of(first).values())) == 4


def test_a_branch_with_the_rest_of_the_uniforms_is_not_the_same_rollout(make_engine: MakeEngine) -> None:
    """The seed counts from the start of the continuation, so a branch is a fresh draw."""
    engine = make_engine()
    trunk = drain(engine, [request(0)])[0]
    branch = drain(engine, [request(1, (1, 2, 3, *trunk.tokens[:3]), 9, seed=0)])[1]
    assert branch.tokens != trunk.tokens[3:]


# --- prefix re-use -------------------------------------------------------------------------------------------------


def test_a_prompt_that_many_wait_for_is_computed_once(make_engine: MakeEngine) -> None:
    engine, a, b = make_engine(), tuple(range(20)), (*range(10), *range(30, 40))
    drain(engine, [request(i, (a, b)[i % 2]) for i in range(6)])
    # 19 of a, then 9 more of b; the last token of each of the six goes through its first decode step.
    assert engine.stats.prefill_tokens == 19 + 9 + 6
    assert engine.stats.cached_prefix_tokens == 6 * 20 - engine.stats.prefill_tokens
    assert engine.stats.sampled_tokens == 6 * 12


def test_a_branch_computes_one_prefix_token(make_engine: MakeEngine) -> None:
    engine = make_engine()
    trunk = drain(engine, [request(0, range(20))])[0]
    before = dataclasses.replace(engine.stats)
    branches = [request(i, (*range(20), *trunk.tokens[: 4 + i % 2])) for i in range(1, 5)]
    drain(engine, branches)
    assert engine.stats.prefill_tokens - before.prefill_tokens == 4
    assert engine.stats.cached_prefix_tokens - before.cached_prefix_tokens == sum(len(b.prefix) - 1 for b in branches)


def test_a_prefix_that_ends_with_the_last_sampled_token(make_engine: MakeEngine) -> None:
    """That token was never put through the model, so its keys and values are not known."""
    model = random_model("qwen3")
    engine = make_engine(model)
    trunk = drain(engine, [request(0)])[0]
    longer = request(1, (1, 2, 3, *trunk.tokens, 5), 10)
    assert_logprobs_match(model, longer, drain(engine, [longer])[1], SamplingParams())


def test_eviction_under_a_small_cache(make_engine: MakeEngine) -> None:
    model = random_model("llama")
    engine = make_engine(model, max_batch_size=4, cache_tokens=5 * 64)
    requests = {i: request(i, prompt, 15) for i, prompt in enumerate(prompts(10, seed=4) * 3)}
    done = drain(engine, requests.values())
    fresh = {100 + i: request(100 + i, requests[i].prefix + done[i].tokens[:5], 15) for i in range(30)}
    done |= drain(engine, fresh.values())
    assert 0 < engine._prefixes.held_tokens <= 64
    roomy = make_engine(model)
    assert tokens_of(done) == tokens_of(drain(roomy, [*requests.values(), *fresh.values()]))
    assert engine.stats.prefill_tokens > roomy.stats.prefill_tokens
    for request_id, rollout in done.items():
        assert_logprobs_match(model, (requests | fresh)[request_id], rollout, SamplingParams())


# --- ends ----------------------------------------------------------------------------------------------------------


def test_a_stop_string_found_across_tokens_ends_the_rollout(
    make_engine: MakeEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    free = drain(make_engine(), [request(i, max_new_tokens=30) for i in range(8)])
    text = {i: tokenizer.decode(rollout.tokens) for i, rollout in free.items()}
    pairs = [free[3].tokens[i : i + 2] for i in range(5, 25)]
    stop = next(s for pair in pairs if len(s := tokenizer.decode(pair)) >= 2 and s.isalpha())
    stopped = drain(make_engine(stop=(stop,)), [request(i, max_new_tokens=30) for i in range(8)])
    assert stopped[3].finish_reason == "stop"
    for i, rollout in stopped.items():
        assert rollout.tokens == free[i].tokens[: len(rollout.tokens)]
        assert (rollout.finish_reason == "stop") == (stop in text[i])
        assert stop not in tokenizer.decode(rollout.tokens[:-1])


def test_end_of_sequence_and_length(make_engine: MakeEngine) -> None:
    free = drain(make_engine(), [request(i) for i in range(4)])
    eos = free[2].tokens[4]
    ended = drain(make_engine(eos_token_ids=(eos,)), [request(i) for i in range(4)])
    assert ended[2].finish_reason == "eos" and ended[2].tokens[-1] == eos and eos not in ended[2].tokens[:-1]
    for i, rollout in ended.items():
        assert rollout.finish_reason == ("eos" if eos in free[i].tokens else "length")
        assert rollout.tokens == free[i].tokens[: len(rollout.tokens)]
        assert len(rollout.logprobs) == len(rollout.tokens)


def test_a_sequence_may_fill_the_model_to_the_last_position(make_engine: MakeEngine) -> None:
    model = random_model("qwen3")
    full = request(0, range(10), 54)
    rollout = drain(make_engine(model, max_model_len=64), [full, request(1)])[0]
    assert len(rollout.tokens) == 54 and rollout.finish_reason == "length"
    assert_logprobs_match(model, full, rollout, SamplingParams())


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_new_weights_leave_nothing_of_the_old_ones(make_engine: MakeEngine, family: str) -> None:
    """The same requests before and after: a prefix cached under the old weights would show at once."""
    new = random_model(family, seed=1)
    engine = make_engine(random_model(family))
    requests = {i: request(i, prompt) for i, prompt in enumerate(prompts(8, seed=5))}
    before = drain(engine, requests.values())
    engine.update_weights(new.named_parameters())
    cached = engine.stats.cached_prefix_tokens
    after = drain(engine, requests.values())
    assert tokens_of(after) != tokens_of(before)
    assert engine.stats.cached_prefix_tokens == cached
    for request_id, rollout in after.items():
        assert_logprobs_match(new, requests[request_id], rollout, SamplingParams())


def test_a_tied_head_may_be_given_too(make_engine: MakeEngine) -> None:
    engine, weights = make_engine(), random_weights(1)
    engine.update_weights([*weights.items(), ("lm_head.weight", weights["model.embed_tokens.weight"])])
    with pytest.raises(UserError, match=r"'lm_head.weight' is tied to 'model.embed_tokens.weight'"):
        engine.update_weights([*weights.items(), ("lm_head.weight", torch.ones(VOCAB, 32))])


def test_an_untied_head_may_not_be_absent(make_engine: MakeEngine) -> None:
    weights = dict(random_model("llama").named_parameters())
    del weights["lm_head.weight"]
    with pytest.raises(UserError, match=r"1 of \d+ weights are missing: lm_head.weight"):
        make_engine(random_model("llama")).update_weights(weights.items())


def test_weights_that_do_not_fit_are_named(make_engine: MakeEngine) -> None:
    engine, weights = make_engine(), random_weights(1)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(UserError, match=rf"missing: {name}"):
        engine.update_weights((n, w) for n, w in weights.items() if n != name)
    with pytest.raises(UserError, match=r"unknown weight 'model.extra'"):
        engine.update_weights([("model.extra", torch.ones(1))])
    with pytest.raises(UserError, match=rf"'{name}' has shape \(32, 48\), the model's is \(48, 32\)"):
        engine.update_weights([(name, weights[name].T)])
    with pytest.raises(UserError, match=rf"'{name}' is given twice"):
        engine.update_weights([(name, weights[name])] * 2)


def test_experts_come_one_by_one(make_engine: MakeEngine) -> None:
    new = random_model("qwen3_moe", seed=1)
    engine = make_engine(random_model("qwen3_moe"))
    engine.update_weights(hf_weights(new).items())
    updated = drain(engine, [request(0)])[0]
    assert_logprobs_match(new, request(0), updated, SamplingParams())
    one = "model.layers.1.mlp.experts.2.up_proj.weight"
    with pytest.raises(UserError, match=f"1 of .* weights are missing: {one}"):
        engine.update_weights((name, weight) for name, weight in hf_weights(new).items() if name != one)


def test_no_change_while_requests_run(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit([request(0)])
    with pytest.raises(RuntimeError, match="cannot update the weights while 1 requests are unfinished"):
        engine.update_weights(random_weights(1).items())
    with pytest.raises(RuntimeError, match="cannot change the sampling parameters"):
        engine.set_sampling(SamplingParams())
    assert drain(engine)[0].tokens == drain(make_engine(), [request(0)])[0].tokens


def test_other_sampling_parameters(make_engine: MakeEngine) -> None:
    model, params = random_model("qwen3"), SamplingParams(temperature=0.3)
    engine = make_engine(model)
    drain(engine, [request(0)])
    engine.set_sampling(params)
    cooler = drain(engine, [request(0)])[0]
    assert_logprobs_match(model, request(0), cooler, params)
    four = [request(i, max_new_tokens=30) for i in range(4)]
    for ends in ({"stop": ("e",)}, {"stop": ("e",), "eos_token_ids": (cooler.tokens[3],)}):
        engine.set_sampling(dataclasses.replace(params, **ends))
        ended = drain(engine, four)
        assert tokens_of(ended) == tokens_of(drain(make_engine(model, temperature=0.3, **ends), four))
        assert any(rollout.finish_reason == list(ends)[-1].partition("_")[0] for rollout in ended.values())


def test_nan_weights_end_in_an_error_and_good_ones_mend_it(make_engine: MakeEngine) -> None:
    model = random_model("qwen3")
    engine, good = make_engine(model), {name: w.clone() for name, w in model.named_parameters()}
    pair = [request(0), request(1, range(20))]  # the short row is read beyond its end, where NaN must not linger
    before = drain(engine, pair)
    engine.update_weights((name, torch.full_like(w, float("nan"))) for name, w in good.items())
    engine.submit([request(13, range(20)), request(1)])
    with pytest.raises(UserError, match="request 13: the model's logits for token 20 are not finite"):
        engine.poll()
    engine.update_weights(good.items())
    assert tokens_of(drain(engine, pair)) == tokens_of(before)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(1, ()), "the prefix is empty"),
        (request(1, max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (request(1, range(60), 5), r"60 \+ max_new_tokens 5 = 65 tokens, but max_model_len is 64"),
        (request(1, (3, VOCAB)), f"token id {VOCAB} lies outside the model's vocabulary of {VOCAB}"),
        (request(1, (3, -1)), "token id -1 lies outside"),
        (request(1, seed=-1), "seed must lie in"),
        (request(1, seed=2**63), "seed must lie in"),
        (request(0), "request 0 is already waiting or running"),
    ],
)
def test_a_bad_request_is_refused_and_none_of_its_batch_taken(
    make_engine: MakeEngine, bad: RolloutRequest, message: str
) -> None:
    engine = make_engine()
    engine.submit([request(0)])
    with pytest.raises(UserError, match=message) as error:
        engine.submit([request(7), bad])
    assert "\n" not in str(error.value)
    assert list(drain(engine)) == [0]


def test_ids_may_be_used_again_once_finished(make_engine: MakeEngine) -> None:
    engine = make_engine()
    drain(engine, [request(0)])
    with pytest.raises(UserError, match="already"):
        engine.submit([request(0), request(0)])
    assert list(drain(engine, [request(0)])) == [0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"cache_tokens": 9 * 64 - 1}, r"cache_tokens is 575, but max_batch_size 8 .* needs .* = 576"),
        ({"max_batch_size": 0}, "at least 1"),
        ({"max_model_len": 257, "cache_tokens": 10**6}, "max_model_len 257 must lie between 2 and the model's 256"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make_engine: MakeEngine, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_engine(**sizes)


def test_unsupported_models_are_refused(make_engine: MakeEngine) -> None:
    sliding = config_of("qwen2")
    sliding.layer_types = ["full_attention", "sliding_attention"] * 2
    sliding.use_sliding_window, sliding.sliding_window = True, 8
    dynamic = config_of("llama")
    dynamic.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for config, message in ((sliding, "only full attention"), (dynamic, "rope type 'dynamic'")):
        with pytest.raises(UserError, match=message):
            make_engine(AutoModelForCausalLM.from_config(config))


def test_close_releases_the_model(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.close()
    assert not hasattr(engine, "_model") and not hasattr(engine, "_rows")
