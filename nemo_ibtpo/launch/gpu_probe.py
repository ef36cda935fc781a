"""What a run does with a GPU that a look at it does not show: a second process on it, and a compiled kernel.

    python -m nemo_ibtpo.launch.gpu_probe cuda:0 [--compile]

Started by the pre-flight on every rank while the rank itself holds the GPU. A vLLM process shares a rank's GPU, which
exclusive compute mode forbids. The actor's attention is compiled, which takes a C compiler and Python's headers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

import torch

_TIMEOUT_S = 300.0  # a first compilation takes most of a minute

# A word of what the probe writes, and what to do about it.
_ADVICE = (
    ("Python.h", "Triton compiles with Python's headers: install python3-dev (or your Python's development package)"),
    ("exclusive", "the GPU is in exclusive compute mode, but vLLM shares it with the actor: nvidia-smi -c DEFAULT"),
    (
        "busy or unavailable",
        "another process holds the GPU, or it is in exclusive compute mode: nvidia-smi -c DEFAULT",
    ),
    ("compiler", "Triton needs a C compiler: install gcc, or name one in CC"),
    ("gcc", "Triton needs a C compiler: install gcc, or name one in CC"),
    ("out of memory", "another process holds the GPU's memory: nvidia-smi shows it"),
)


def try_second_process(
    device: torch.device, *, compiles: bool, environment: dict[str, str] | None = None
) -> str | None:
    """Run the probe in a process of its own while this one uses the device.

    Args:
        compiles: whether it compiles attention as well.
        environment: of the process; None is this one's.

    Returns:
        What is wrong and what to do about it, or None.
    """
    held = torch.ones(1, device=device)  # this process has its context
    command = [sys.executable, "-m", "nemo_ibtpo.launch.gpu_probe", str(device), *(["--compile"] if compiles else [])]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"a second process on {device} did not end within {_TIMEOUT_S:.0f} s"
    finally:
        del held
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    advice = next((advice for word, advice in _ADVICE if word.lower() in done.stderr.lower()), "")
    reason = (lines or [f"exit status {done.returncode}"])[-1][:300]
    return f"a second process on {device} failed: {reason}{f'; {advice}' if advice else ''}"


def probe(device: torch.device, *, compiles: bool) -> None:
    """Use the device; with ``compiles`` run compiled FlexAttention as the actor does, on a GPU also backward.

    Raises:
        ValueError: a result is wrong.
        Exception: whatever the device or the compiler has to say.
    """
    if torch.ones(8, device=device).sum().item() != 8:
        raise ValueError(f"{device} adds wrongly")
    if not compiles:
        return
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = 256
    torch.manual_seed(0)
    qkv = torch.randn(3, 1, 2, length, 16, device=device, requires_grad=device.type == "cuda")
    causal = create_block_mask(lambda b, h, query, key: key <= query, None, None, length, length, str(device))
    ours = torch.compile(flex_attention, fullgraph=True)(qkv[0], qkv[1], qkv[2], block_mask=causal)
    expected = torch.nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
    if not torch.allclose(ours, expected, atol=2e-2, rtol=2e-2):
        raise ValueError(f"compiled attention on {device} differs from the uncompiled one")
    if device.type == "cuda":
        ours.sum().backward()


def main(argv: Sequence[str]) -> None:
    """Probe; an exception tells what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m nemo_ibtpo.launch.gpu_probe", allow_abbrev=False)
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--compile", action="store_true", dest="compiles")
    arguments = parser.parse_args(argv)
    probe(arguments.device, compiles=arguments.compiles)


if __name__ == "__main__":
    main(sys.argv[1:])
