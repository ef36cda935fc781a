"""``nemo-ibtpo convert hf-to-megatron | megatron-to-hf``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.model_directory import read_model_directory
from nemo_ibtpo.config.validation import check_bridge
from nemo_ibtpo.conversion.checks import check_checkpoint, check_output

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers

_DTYPES = ("fp32", "bf16", "fp16")
_UNITS = {"MB": 10**6, "GB": 10**9}

_TO_MEGATRON = """\
examples:
  nemo-ibtpo convert hf-to-megatron /models/Qwen3-8B /checkpoints/qwen3-8b
  nemo-ibtpo convert hf-to-megatron /models/Llama-3.1-70B /checkpoints/llama-70b --dtype bf16
  nemo-ibtpo convert hf-to-megatron /models/Qwen3-0.6B /checkpoints/qwen3-0.6b --verify --force
  nemo-ibtpo convert hf-to-megatron /models/Minitron-4B-Base /checkpoints/minitron-4b --provider bridge

The checkpoint (megatron/ in torch_dist format, model/, manifest.json) loads under every TP x PP x EP layout. One
process; it holds one parameter at a time, so that host memory need not hold the model (--verify does hold it).
"""
_TO_HF = """\
examples:
  nemo-ibtpo convert megatron-to-hf runs/tiny/checkpoints/latest /models/tiny
  nemo-ibtpo convert megatron-to-hf runs/tiny/checkpoints/step_20 /models/tiny --verify
  nemo-ibtpo convert megatron-to-hf /checkpoints/llama-70b /models/llama-70b --dtype bf16 --max-shard-size 5GB
  nemo-ibtpo convert megatron-to-hf runs/minitron/checkpoints/latest /models/minitron --provider bridge

The checkpoint may come from a run of any layout, with or without optimizer state. One process; it holds one shard of
the output at a time (--verify holds the model).
"""


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``convert``."""
    convert = commands.add_parser(
        "convert",
        allow_abbrev=False,
        help="convert a model between Hugging Face and Megatron (nemo-ibtpo convert --help)",
        description="Convert a model between a Hugging Face directory and a Megatron checkpoint, either way.",
    )
    directions = convert.add_subparsers(dest="direction", metavar="direction", required=True)
    for name, text, source, epilog in (
        ("hf-to-megatron", "Hugging Face model directory to Megatron checkpoint", "model directory", _TO_MEGATRON),
        ("megatron-to-hf", "checkpoint to Hugging Face model directory", "checkpoint directory", _TO_HF),
    ):
        direction = directions.add_parser(
            name,
            allow_abbrev=False,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        direction.add_argument("source", type=Path, help=source)
        direction.add_argument("output", type=Path, help="directory to write, which appears when it is complete")
        direction.add_argument(
            "--provider",
            choices=("own", "bridge"),
            default="own",
            help="who knows the model: this package, or megatron-bridge for further dense decoders, which needs it "
            "and Transformer Engine (default: %(default)s; docs/models.md)",
        )
        direction.add_argument("--dtype", choices=_DTYPES, help="type of the written weights (default: as they are)")
        if name == "megatron-to-hf":
            direction.add_argument(
                "--max-shard-size",
                default="5GB",
                metavar="SIZE",
                help="largest safetensors file, such as 500MB or 5GB (default: %(default)s)",
            )
        direction.add_argument("--force", action="store_true", help="replace the output if it is there")
        direction.add_argument(
            "--verify",
            action="store_true",
            help="load both sides in float32, compare their logits on a sample (with --provider bridge on a GPU)",
        )


def run(arguments: argparse.Namespace) -> None:
    """Convert a model."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("convert is one process: start it without torchrun")
    source, output = arguments.source, Path(os.path.normpath(arguments.output))
    if output.resolve() == source.resolve() or source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"{output} holds the source; choose another place for the output")
    max_shard_bytes = _bytes(arguments.max_shard_size) if arguments.direction == "megatron-to-hf" else 0
    if arguments.direction == "hf-to-megatron":
        read_model_directory(str(source), arguments.provider)
    else:
        check_checkpoint(source, arguments.provider)
    if arguments.provider == "bridge":
        check_bridge("--provider bridge")
    check_output(output, arguments.force)

    # These import torch and Megatron.
    from nemo_ibtpo.conversion.convert import hf_to_megatron, megatron_to_hf
    from nemo_ibtpo.reporting.progress import RunConsole

    common = {
        "provider": arguments.provider,
        "dtype": arguments.dtype,
        "force": arguments.force,
        "verify": arguments.verify,
        "console": RunConsole(0),
    }
    if arguments.direction == "hf-to-megatron":
        hf_to_megatron(source, output, **common)
    else:
        megatron_to_hf(source, output, max_shard_bytes=max_shard_bytes, **common)


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(MB|GB)", size)
    if match is None or not float(match[1]):
        raise UserError(f"--max-shard-size {size}: write it as 500MB or 5GB")
    return int(float(match[1]) * _UNITS[match[2]])
