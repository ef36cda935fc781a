"""Python answers run against unit tests, in a process that can do little.

The process has its own limits of processor time and memory, writes no file, starts no process, has an empty
environment and, where the kernel allows, no network. What it computed is compared outside of it: leaving early,
printing "passed" or patching ``==`` earns nothing. It is a limit on damage, no sandbox against an attacker with an
exploit of the kernel.
"""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_ibtpo.rewards.limits import leave_network

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
_MAX_OUTPUT_BYTES = 1_000_000
# Runs in the child: the program, then each call; what a call returns goes out as JSON behind a mark of this run.
_CALLS = """
import json, sys
job = json.load(sys.stdin)
space = {"__name__": "answer"}
exec(compile(job["program"], "answer", "exec"), space)
for call in job["calls"]:
    try:
        result = repr(eval(compile(call, "test", "eval"), space))
    except Exception as error:
        result = None
    print("\\n" + job["mark"] + json.dumps(result), flush=True)
"""


def unit_tests(
    response: str, row: Mapping[str, Any], *, tests_key: str = "tests", timeout_s: float = 4.0, memory_mib: int = 512
) -> dict[str, float]:
    """Share of the row's tests that the last code block of a response passes; ``score`` is 1 if it passes all.

    Args:
        response: Markdown with the program in a fence.
        row: ``row[tests_key]`` is a list of ``assert <call> == <literal>`` lines, or ``{"inputs": [...], "outputs":
            [...]}`` for programs that read standard input and print.
        tests_key: column of the tests.
        timeout_s: for all calls together, or for each input; ``reward.timeout_s`` must be longer than the sum.
        memory_mib: address space of the process.

    Raises:
        ValueError: the row has no tests of these forms.
    """
    blocks = _BLOCK.findall(response)
    tests = row.get(tests_key)
    if isinstance(tests, str) and tests.lstrip().startswith(("{", "[")):
        tests = json.loads(tests)
    if isinstance(tests, Mapping):
        expected = [str(output).split() for output in tests["outputs"]]
        passed = 0
        for text, output in zip(tests["inputs"], expected, strict=True):
            printed = _run(blocks[-1], str(text), timeout_s, memory_mib) if blocks else None
            passed += printed is not None and printed.split() == output
    else:
        calls, expected = _read_asserts(tests)
        results = _run_calls(blocks[-1], calls, timeout_s, memory_mib) if blocks else []
        passed = sum(_is_literal(got, wanted) for got, wanted in zip(results, expected, strict=False))
    return {"score": float(passed == len(expected)), "tests_passed": passed / len(expected)}


def _read_asserts(tests: Any) -> tuple[list[str], list[Any]]:
    lines = tests.splitlines() if isinstance(tests, str) else tests
    calls, expected = [], []
    for line in lines or ():
        match ast.parse(line.strip()).body:
            case [ast.Assert(test=ast.Compare(left=call, ops=[ast.Eq()], comparators=[wanted]))]:
                calls.append(ast.unparse(call))
                expected.append(ast.literal_eval(wanted))
            case [ast.Assert(test=call)]:
                calls.append(f"bool({ast.unparse(call)})")
                expected.append(True)
            case []:
                continue
            case _:
                raise ValueError(f"a test is not 'assert <call> == <literal>': {line!r}")
    if not calls:
        raise ValueError("the row has no tests")
    return calls, expected


def _run_calls(program: str, calls: Sequence[str], timeout_s: float, memory_mib: int) -> list[Any]:
    mark = secrets.token_hex(16)
    job = json.dumps({"program": program, "calls": list(calls), "mark": mark})
    printed = _run(_CALLS, job, timeout_s, memory_mib, keep_on_failure=True) or ""
    lines = [line.removeprefix(mark) for line in printed.splitlines() if line.startswith(mark)]
    return [json.loads(line) for line in lines] if len(lines) <= len(calls) else []


def _is_literal(text: Any, wanted: Any) -> bool:
    try:
        got = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return bool(type(got) is type(wanted) and got == wanted)


def _run(program: str, text: str, timeout_s: float, memory_mib: int, keep_on_failure: bool = False) -> str | None:
    """What a program prints, None if it fails."""

    def limit() -> None:
        for name, value in (
            (resource.RLIMIT_CPU, int(timeout_s) + 1),
            (resource.RLIMIT_AS, memory_mib << 20),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NPROC, 0),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(name)[1]
            limited = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(name, (limited, limited))
        leave_network()

    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PYTHONHASHSEED": "0"},
        start_new_session=True,
        preexec_fn=limit,
        text=True,
    ) as process:
        try:
            printed, _ = process.communicate(text, timeout=timeout_s)
        except (subprocess.TimeoutExpired, UnicodeDecodeError):
            os.killpg(process.pid, signal.SIGKILL)
            return None
    failed = process.returncode != 0 and not keep_on_failure
    return None if failed or len(printed) > _MAX_OUTPUT_BYTES else printed
