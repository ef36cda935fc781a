"""Everything that needs a GPU, on one machine without a network, in a given time: tests/gpu, then benchmarks.

    python benchmarks/gpu_check.py --wheels DIRECTORY --out DIRECTORY --seconds 540

Tests wait for compilers most of their time, so all of them run at once; benchmarks run one after the other, alone.

The machine brings Python with torch, Triton, transformers and pytest; what else is needed comes as wheels, which are
installed beside it without their dependencies (megatron-core at least). Each part is a process of its own with a time
limit of its own, cut to what is left of the whole. A line of ``parts.jsonl`` is written when a part ends, so that
nothing is lost if this program is cut off; the output of each part is in ``<part>.log``. The last thing printed is a
table.

Without a GPU every part starts all the same: tests are skipped with a reason and benchmarks take their tiny sizes,
whose figures mean nothing. The exit status is 1 if a part failed or ran out of its time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_RUNNING: set[int] = set()  # process groups
_ON_GPU = ["--device", "cuda", "--dtype", "bf16", "--repetitions", "3"]
_RESPONSES = ["--long", "512", "--prompts", "16", "--batch", "256", "--repetitions", "1"]
_VERSIONS = (
    "import torch, triton, transformers, megatron.core; "
    "print(torch.__version__, triton.__version__, transformers.__version__, megatron.core.__version__); "
    "print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
)


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: of its log.
        arguments: of Python.
        seconds: its time limit.
        alone: whether nothing else may run beside it.
    """

    name: str
    arguments: Sequence[str]
    seconds: float
    alone: bool


def test(name: str, seconds: float, *, alone: bool = False) -> Part:
    """A file of ``tests/gpu``."""
    return Part(name, ["-m", "pytest", "-rsfE", "--durations=4", f"tests/gpu/test_{name}_gpu.py"], seconds, alone)


def benchmark(name: str, arguments: Sequence[str], seconds: float, *, tiny: bool, script: str | None = None) -> Part:
    """A script beside this one, or its tiny form."""
    arguments = ["--tiny", "--repetitions", "1"] if tiny else arguments
    return Part(f"benchmark_{name}", [f"benchmarks/{script or name}.py", *arguments], seconds, True)


def parts_of(tiny: bool) -> list[Part]:
    """All parts, in the order in which they are wanted should time run out."""
    return [
        Part("versions", ["-c", _VERSIONS], 60, True),
        test("logprobs", 200),
        test("training", 200),
        test("tree_attention", 240),
        test("gradients", 240),
        test("megatron_bridge", 90),
        test("circle", 240, alone=True),  # vLLM refuses to start where others free memory meanwhile
        benchmark("logprobs", ["--vocab-sizes", "151936", "--repetitions", "5"], 90, tiny=tiny),
        benchmark("tree_training", ["--repetitions", "3"], 120, tiny=tiny),
        benchmark("attention", ["--repetitions", "5"], 60, tiny=tiny),
        benchmark("whole_step", ["--sides", "window_4", "grpo", "--repetitions", "1"], 260, tiny=tiny),
        benchmark("sampling", ["--card", "Qwen3-1.7B-Base", *_RESPONSES], 240, tiny=tiny),
        benchmark("saving", ["--tensor", "1", "--pipeline", "1", *_ON_GPU], 60, tiny=tiny),
        benchmark("refit", _ON_GPU, 60, tiny=tiny),
        benchmark("depth_first", ["--repetitions", "3"], 90, tiny=tiny),
    ]


def stop(*_: object) -> None:
    """Take along what was started."""
    for group in list(_RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    sys.exit("gpu_check: stopped")


def status_of(returncode: int | None, output: str) -> str:
    """What a part's end means, in a word."""
    if returncode is None:
        return "out of time"
    if returncode:
        return "failed"
    counts = pytest_counts(output)
    return "skipped" if counts and set(counts) <= {"skipped", "deselected"} else "passed"


def pytest_counts(output: str) -> dict[str, int]:
    """How many tests ended how, from pytest's last line; empty of another program."""
    words = "passed|failed|skipped|error|errors|deselected"
    lines = [line for line in output.splitlines() if re.search(rf"\d+ ({words})\b.* in [\d.]+", line)]
    found = re.findall(rf"(\d+) ({words})\b", lines[-1]) if lines else []
    return {word: int(number) for number, word in found}


def reasons(output: str) -> list[str]:
    """Why tests were skipped or failed, as pytest says at its end."""
    return [line[:200] for line in output.splitlines() if line.startswith(("SKIPPED", "FAILED", "ERROR"))][:8]


def figures(output: str) -> list[dict[str, Any]]:
    """The JSON lines of a benchmark."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]


def run(part: Part, limit: float, log: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a part to its end or its limit, with all that it started; what became of it."""
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _RUNNING.add(process.pid)
        try:
            returncode: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            returncode = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _RUNNING.discard(process.pid)
    output = log.read_text(errors="replace")
    ended = {
        "part": part.name,
        "status": status_of(returncode, output),
        "returncode": returncode,
        "seconds": round(time.monotonic() - started, 1),
        "tests": pytest_counts(output),
        "reasons": reasons(output),
        "figures": figures(output),
    }
    if ended["status"] not in ("passed", "skipped"):
        ended["end_of_log"] = output[-1500:]
    return ended


def run_all(
    parts: Sequence[Part], slowness: float, deadline: float, out: Path, environment: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """What became of each part, as it ends: neighbours that need not be alone run at once."""

    def end_of(part: Part) -> dict[str, Any]:
        left = deadline - time.monotonic()
        if left < 5:
            return {"part": part.name, "status": "not started", "seconds": 0.0}
        return run(part, min(slowness * part.seconds, left), out / f"{part.name}.log", environment)

    # None waits in a pool, from where it would start after a stop.
    for _, group in groupby(parts, key=lambda part: part.name if part.alone else ""):
        together = list(group)
        with ThreadPoolExecutor(len(together)) as pool:
            for ended in as_completed([pool.submit(end_of, part) for part in together]):
                yield ended.result()


def install(wheels: Path | None, site: Path) -> None:
    """Unpack the wheels into a directory.

    Raises:
        SystemExit: there are none, or pip refuses them.
    """
    if wheels is None:
        return
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise SystemExit(f"gpu_check: {wheels} holds no wheels")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", str(site), *found], check=False)
    if done.returncode:
        raise SystemExit(f"gpu_check: pip cannot install the wheels in {wheels}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a part."""
    lines = [f"{'part':26} {'status':12} {'seconds':>8}  what"]
    for row in rows:
        tests = ", ".join(f"{number} {word}" for word, number in row.get("tests", {}).items())
        keys = [key for line in row.get("figures", []) for key in line if key.endswith(("ratio", "mfu_packed", "_s"))]
        numbers = ", ".join(f"{key}={row['figures'][-1].get(key)}" for key in dict.fromkeys(keys))
        lines.append(f"{row['part']:26} {row['status']:12} {row['seconds']:8.1f}  {tests or numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="directory of wheels that the machine's Python lacks")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="directory for logs and parts.jsonl")
    parser.add_argument("--seconds", type=float, default=540.0, help="of all parts together")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, (options.out / "parts.jsonl").open("w") as lines:
        site = Path(scratch) / "site"
        install(options.wheels, site)
        import_path = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, import_path)),
            "PYTHONUNBUFFERED": "1",
            # What one part compiles the next one finds.
            "TORCHINDUCTOR_CACHE_DIR": str(Path(scratch) / "inductor"),
            "TRITON_CACHE_DIR": str(Path(scratch) / "triton"),
        }
        ask = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
        has_gpu = subprocess.run(ask, env=environment, check=False).returncode == 0
        signal.signal(signal.SIGTERM, stop)
        parts = [part for part in parts_of(tiny=not has_gpu) if not options.only or part.name in options.only]
        slowness = 1 if has_gpu else 4  # a CPU is slow even at starting
        for ended in run_all(parts, slowness, deadline, options.out, environment):
            rows.append(ended)
            line = json.dumps(ended)
            print(line, flush=True)
            lines.write(line + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    print(table(rows))
    sys.exit(any(row["status"] in ("failed", "out of time") for row in rows))


if __name__ == "__main__":
    main()
