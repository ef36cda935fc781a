"""What engines refuse to sample."""

from __future__ import annotations

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.tree.rollouts import RolloutRequest

_SMALLEST_TEMPERATURE = 2.0**-126  # the smallest normal float32


def check_request(request: RolloutRequest, *, max_model_len: int, vocab_size: int) -> None:
    """Refuse a request that cannot be run.

    Raises:
        UserError: says which request and why.
    """
    where = f"request {request.request_id!r}"
    if not request.prefix:
        raise UserError(f"{where}: the prefix is empty; at least one token is needed to continue")
    if request.max_new_tokens < 1:
        raise UserError(f"{where}: max_new_tokens must be at least 1, got {request.max_new_tokens}")
    length = len(request.prefix) + request.max_new_tokens
    if length > max_model_len:
        raise UserError(
            f"{where}: prefix of {len(request.prefix)} + max_new_tokens {request.max_new_tokens} = {length}"
            f" tokens, but max_model_len is {max_model_len}"
        )
    if not 0 <= min(request.prefix) <= max(request.prefix) < vocab_size:
        bad = next(token for token in request.prefix if not 0 <= token < vocab_size)
        raise UserError(f"{where}: token id {bad} lies outside the model's vocabulary of {vocab_size}")
    if not 0 <= request.seed < 2**63:  # vLLM keeps it as a signed 64-bit number on a GPU
        raise UserError(f"{where}: seed must lie in [0, 2**63), got {request.seed}")


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Refuse sampling parameters that describe no distribution.

    Raises:
        UserError: names the parameter, its value and its range.
    """
    if not _SMALLEST_TEMPERATURE <= params.temperature < float("inf"):
        raise UserError(f"temperature must be a finite number greater than 0, got {params.temperature}")
    if not 0.0 < params.top_p <= 1.0:
        raise UserError(f"top_p must lie in (0, 1], got {params.top_p}")
    if params.top_k < 0:
        raise UserError(f"top_k must be 0 (keep all) or positive, got {params.top_k}")
    if not 0.0 < params.repetition_penalty < float("inf"):
        raise UserError(f"repetition_penalty must be a finite number above 0, got {params.repetition_penalty}")
    if "" in params.stop:
        raise UserError("stop must not hold an empty text: it would end every response at its first token")
    for token in params.eos_token_ids:
        if not 0 <= token < vocab_size:
            raise UserError(f"end-of-sequence id {token} lies outside the model's vocabulary of {vocab_size}")
