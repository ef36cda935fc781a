"""What engines refuse to sample."""

from __future__ import annotations

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.tree.rollouts import RolloutRequest


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
    if not 0 <= request.seed < 2**64:
        raise UserError(f"{where}: seed must lie in [0, 2**64), got {request.seed}")
