"""A language model as the judge, over an OpenAI-compatible endpoint. Needs ``reward.network=true``."""

from __future__ import annotations

import re

from nemo_ibtpo.rewards.library.http import post

INSTRUCTION = """You grade an answer to a question. Compare it with the reference answer if there is one.

Question:
{prompt}

Reference answer:
{answer}

Answer to grade:
{response}

End with a line "Score: x", where x is a number from 0 (wrong) to 1 (right)."""

_SCORE = re.compile(r"score\s*:\s*\**\s*([01](?:\.\d+)?|\.\d+)", re.IGNORECASE)


async def score(
    prompt: str,
    response: str,
    answer: str,
    *,
    url: str,
    model: str,
    key_env: str | None = "OPENAI_API_KEY",
    instruction: str = INSTRUCTION,
    max_tokens: int = 512,
    timeout_s: float = 60.0,
    retries: int = 4,
    wait_s: float = 1.0,
) -> float:
    """The score that the judge gives.

    Args:
        prompt, response, answer: what is graded.
        url: of the server, such as ``http://localhost:8000/v1``.
        model: its name there.
        key_env: environment variable with the key; null sends none.
        instruction: text with ``{prompt}``, ``{answer}`` and ``{response}``.
        max_tokens: of the judge's reply.
        timeout_s, retries, wait_s: see ``http.post``; ``reward.timeout_s`` must be longer than all attempts.

    Raises:
        RuntimeError: the server fails, or the judge gives no score.
    """
    filled = {"prompt": prompt, "answer": answer, "response": response}
    text = re.sub(r"\{(prompt|answer|response)\}", lambda match: filled[match[1]], instruction)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    reply = await post(
        f"{url.rstrip('/')}/chat/completions",
        body,
        key_env=key_env,
        timeout_s=timeout_s,
        retries=retries,
        wait_s=wait_s,
    )
    said = reply["choices"][0]["message"]["content"]
    scores = _SCORE.findall(said)
    if not scores:
        raise RuntimeError(f"the judge gives no score: {said[-200:]!r}")
    return min(1.0, float(scores[-1]))
