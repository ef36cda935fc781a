"""POST a JSON object to a server, with patience: rate limits and faults of the server are tried again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import urllib.error
import urllib.request
from typing import Any

_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


async def post(
    url: str, body: dict[str, Any], *, key_env: str | None, timeout_s: float, retries: int, wait_s: float
) -> Any:
    """The JSON object that the server answers.

    Args:
        url: of the endpoint.
        body: JSON-able.
        key_env: name of the environment variable with the key; the key is sent in a header and shown nowhere.
        timeout_s: of one attempt.
        retries: further attempts after a time-out, a lost connection, a rate limit or a fault of the server.
        wait_s: before the first of them; then twice as long each time, or as long as the server says.

    Raises:
        RuntimeError: all attempts have failed; the message names the last reason and no key.
    """
    headers = {"Content-Type": "application/json"}
    if key_env is not None:
        if not (key := os.environ.get(key_env)):
            raise RuntimeError(f"the environment variable {key_env} holds no key")
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode()
    reason = ""
    for attempt in range(retries + 1):
        wait = wait_s * 2**attempt * random.uniform(0.75, 1.25)
        try:
            return await asyncio.to_thread(_post, urllib.request.Request(url, data, headers), timeout_s)
        except urllib.error.HTTPError as error:
            reason = f"{url} answers {error.code} {error.reason}"
            if error.code not in _AGAIN:
                break
            asked = error.headers.get("Retry-After", "")
            wait = float(asked) if asked.isdecimal() else wait
        except (OSError, ValueError) as error:  # a lost connection, a time-out, no JSON
            reason = f"{url}: {type(error).__name__}: {error}"
        if attempt < retries:
            await asyncio.sleep(wait)
    raise RuntimeError(reason)


def _post(request: urllib.request.Request, timeout_s: float) -> Any:
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)
