"""The reward functions that are shipped; those that ask a server ask a real one on this machine."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nemo_ibtpo.rewards.library import code, format, judge, overlong, reward_model


def test_format() -> None:
    assert (format.boxed("so \\boxed{7}"), format.boxed("so 7"), format.boxed("\\boxed{7")) == (1.0, 0.0, 0.0)
    assert format.thinks_then_answers("<think>well</think> 7") == 1.0
    for text in ("7", "<think>well", "<think>a</think>", "<think>a</think><think>b</think>7", "x<think>a</think>7"):
        assert format.thinks_then_answers(text) == 0.0, text


def test_overlong() -> None:
    scores = [overlong.not_overlong(n, max_tokens=100, buffer_tokens=20) for n in (0, 80, 90, 100, 120)]
    assert scores == [1.0, 1.0, 0.5, 0.0, 0.0]
    # DAPO adds its punishment to 1 or -1; beside a verifier of weight 2 the order and the distances are the same.
    for length, punishment in ((5, 0.0), (85, -0.25), (95, -0.75), (101, -1.0)):
        short = overlong.not_overlong(length, max_tokens=100, buffer_tokens=20)
        for right in (0.0, 1.0):
            assert (2 * right + short) / 3 == pytest.approx(((2 * right - 1 + punishment) + 2) / 3)
    with pytest.raises(ValueError, match="buffer_tokens=0"):
        overlong.not_overlong(1, max_tokens=10, buffer_tokens=0)


ASSERTS = {"tests": ["assert add(2, 2) == 4", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'"]}


def answer(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nDone."


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("def add(a, b):\n    return a + b", 3),
        ("def add(a, b):\n    return 4", 1),
        ("def add(a, b):\n    print('passed')\n    return a + b", 3),
        ("def add(a, b):\n    raise ValueError", 0),
        ("def add(a, b) return", 0),
        ("import sys; sys.exit(0)", 0),
        ("import os; os._exit(0)", 0),
        ("class Yes(int):\n    __eq__ = lambda *_: True\ndef add(a, b):\n    return Yes(5)", 0),
        ("def add(a, b):\n    while True: pass", 0),
        ("x = 'a' * (4 << 30)\ndef add(a, b):\n    return a + b", 0),
        ("import os\nos.fork()\ndef add(a, b):\n    return a + b", None),  # root may fork: not judged, only survived
        ("import pathlib\npathlib.Path('written').write_text('x' * 9)\ndef add(a, b):\n    return a + b", 0),
    ],
)
def test_code_is_judged_by_what_it_computes(program: str, passed: int | None) -> None:
    found = code.unit_tests(answer(program), ASSERTS, timeout_s=1.5)
    if passed is not None:
        assert found == {"score": float(passed == 3), "tests_passed": passed / 3}


def test_code_has_no_network() -> None:
    program = "import socket\ndef add(a, b):\n    socket.create_connection(('127.0.0.1', PORT), 1)\n    return a + b"
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = str(server.server_port)
    try:
        passed = code.unit_tests(answer(program.replace("PORT", port)), ASSERTS)["score"]
    finally:
        server.server_close()
    if passed:
        pytest.skip("this kernel gives no network namespaces")


def test_code_that_reads_and_prints() -> None:
    row = {"tests": json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", "7\n"]})}
    program = "a, b = map(int, input().split())\nprint(a + b)"
    assert code.unit_tests(answer(program), row)["score"] == 1.0
    assert code.unit_tests(answer("print(3)"), row) == {"score": 0.0, "tests_passed": 0.5}
    assert code.unit_tests("no program", row)["score"] == 0.0


def test_rows_without_tests_are_an_error() -> None:
    with pytest.raises(ValueError, match="no tests"):
        code.unit_tests(answer("pass"), {})
    with pytest.raises(ValueError, match="not 'assert"):
        code.unit_tests(answer("pass"), {"tests": ["import os"]})


class Server(ThreadingHTTPServer):
    """Answers as a judge and as a reward model; fails first as often as it is told."""

    failures: list[int]
    seen: list[tuple[str, str | None, Any]]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append((self.path, self.headers["Authorization"], body))
        if server.failures:
            status = server.failures.pop(0)
            if status == 0:
                time.sleep(2)
                return
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        if self.path == "/v1/chat/completions":
            text = body["messages"][0]["content"]
            said = "Fine.\nScore: 0.75" if "blue" in text else "hm" if "mute" in text else "Score: 0"
            reply: Any = {"choices": [{"message": {"content": said}}]}
        else:
            rows = [{"index": i, "probs": [0.2, len(text) / 100]} for i, text in enumerate(body["input"])]
            reply = {"data": rows[::-1]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.failures, server.seen = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server: Server, response: str, **options: Any) -> float:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    settings: dict[str, Any] = {"key_env": "JUDGE_KEY", "timeout_s": 1.0, "retries": 3, "wait_s": 0.01} | options
    return asyncio.run(judge.score("{response}?", response, "blue", url=url, model="judge", **settings))


def test_a_judge_scores(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    assert ask(server, "it is {answer}") == 0.75
    path, key, body = server.seen[0]
    assert (path, key, body["model"], body["temperature"]) == (
        "/v1/chat/completions",
        "Bearer secret-key",
        "judge",
        0,
    )
    assert "it is {answer}" in body["messages"][0]["content"], "a response is data: it fills nothing in"


@pytest.mark.parametrize("failures", [[429], [503, 500], [0], [429, 0, 502]])
def test_rate_limits_faults_and_time_outs_are_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, failures: list[int]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    server.failures = list(failures)
    assert ask(server, "blue") == 0.75
    assert len(server.seen) == len(failures) + 1


@pytest.mark.parametrize(("failures", "attempts", "said"), [([401], 1, "401"), ([429] * 9, 4, "429")])
def test_other_failures_end_it_and_never_tell_the_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, failures: list[int], attempts: int, said: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    server.failures = failures
    with pytest.raises(RuntimeError, match=said) as caught:
        ask(server, "blue")
    assert len(server.seen) == attempts
    assert "secret" not in "".join(traceback.format_exception(caught.value)).replace('"JUDGE_KEY", "secret-key"', "")
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RuntimeError, match="JUDGE_KEY holds no key"):
        ask(server, "blue")


def test_a_judge_without_a_score_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k")
    with pytest.raises(RuntimeError, match="gives no score"):
        asyncio.run(
            judge.score(
                "mute", "x", "y", url=f"http://127.0.0.1:{server.server_port}/v1", model="m", key_env=None, retries=0
            )
        )


def test_a_reward_model_scores_a_batch(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    scores = asyncio.run(reward_model.score(["a", "b"], ["cc", "dddd"], url=url, model="rm"))
    assert scores == [0.05, 0.07]
