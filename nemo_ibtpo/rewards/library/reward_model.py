"""A reward model behind a server: vLLM's ``/classify`` or any that answers alike. Needs ``reward.network=true``."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_ibtpo.rewards.library.http import post


async def score(
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    url: str,
    model: str,
    label: int = -1,
    key_env: str | None = None,
    timeout_s: float = 60.0,
    retries: int = 4,
    wait_s: float = 1.0,
) -> list[float]:
    """The probabilities of a label, one call for a batch of responses (``reward.batch_size``).

    Args:
        prompts, responses: what is graded, joined by a blank line.
        url: of the server, such as ``http://localhost:8000``; ``{"model", "input": [...]}`` goes to ``/classify``,
        which
            answers ``{"data": [{"index", "probs": [...]}, ...]}``.
        model: its name there.
        label: index of the probability that is the score.
        key_env, timeout_s, retries, wait_s: see ``http.post``.

    Raises:
        RuntimeError: the server fails.
    """
    texts = [f"{prompt}\n\n{response}" for prompt, response in zip(prompts, responses, strict=True)]
    reply = await post(
        f"{url.rstrip('/')}/classify",
        {"model": model, "input": texts},
        key_env=key_env,
        timeout_s=timeout_s,
        retries=retries,
        wait_s=wait_s,
    )
    rows = sorted(reply["data"], key=lambda row: row["index"])
    return [row["probs"][label] for row in rows]
