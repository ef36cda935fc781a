"""``nemo-ibtpo convert``: both directions, with everything checked that can be before the first byte is written.

The output appears under its name when it is complete and, with ``verify``, found right; until then it is a hidden
directory beside it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nemo_ibtpo.checkpoints import MEGATRON, MODEL
from nemo_ibtpo.checkpoints.manifest import describe, file_names, write_manifest
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.model_directory import Provider, read_model_directory
from nemo_ibtpo.conversion.architectures import architecture_of
from nemo_ibtpo.conversion.checks import check_checkpoint, check_output
from nemo_ibtpo.conversion.places import VOCABULARY, Place, places
from nemo_ibtpo.conversion.torch_dist import TorchDistReader, write_torch_dist
from nemo_ibtpo.conversion.verify import check_verifiable, verify_logits
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory, complete_config, copy_companions, write_model
from nemo_ibtpo.megatron.weights import check_names
from nemo_ibtpo.reporting.progress import RunConsole

# What a training checkpoint holds besides weights.
_NOT_WEIGHTS = ("optimizer.", "chained_", "extra", "rng")


def hf_to_megatron(
    source: Path,
    output: Path,
    *,
    provider: Provider,
    dtype: str | None,
    force: bool,
    verify: bool,
    console: RunConsole,
) -> None:
    """Write a Megatron checkpoint (``megatron/``, ``model/``, ``manifest.json``) of a Hugging Face model directory.

    Args:
        provider: who knows the model, this package or megatron-bridge.
        dtype: of the checkpoint; None keeps the model's.
        force: replace ``output`` if it is there.
        verify: load both and compare their logits.

    Raises:
        UserError: anything that the user can mend; ``output`` is as it was.
    """
    if verify:
        check_verifiable(provider)
    read_model_directory(str(source), provider)
    architecture = architecture_of(source, provider)
    weights = SafetensorsDirectory(source)
    check_names(weights, architecture)
    to = _target_dtype({weights.header(name)[0] for name in weights}, dtype, source)
    for place in places(architecture):
        for name, shape in place.rule.shapes.items():
            if weights.header(name)[1] != shape:
                raise UserError(f"weight '{name}' has shape {weights.header(name)[1]}, config.json makes it {shape}")
    everything = places(architecture)
    with _staged(output, force) as staging:
        with console.phase("weights", len(everything), "parameters") as phase:

            def load(place: Place) -> Tensor:
                full = [weights[name].to(to) for name in place.rule.shapes]
                phase.advance()
                return place.rule.cut(full)

            write_torch_dist(staging / MEGATRON, everything, to, load)
        (staging / MODEL).mkdir()
        copy_companions(source, staging / MODEL)
        complete_config(staging / MODEL / "config.json", to)
        write_manifest(staging, describe(staging, file_names(staging), sync=True))
        if verify:
            console.say(verify_logits(source, staging / MEGATRON, to, provider))
    console.say(f"Megatron checkpoint written to {output} ({_spoken(to)})")


def megatron_to_hf(
    source: Path,
    output: Path,
    *,
    provider: Provider,
    dtype: str | None,
    max_shard_bytes: int,
    force: bool,
    verify: bool,
    console: RunConsole,
) -> None:
    """Write a Hugging Face model directory of a checkpoint, with or without optimizer state, of any layout.

    Args:
        source: directory with ``megatron/`` and ``model/``.
        provider: who knows the model, this package or megatron-bridge.
        dtype: of the model; None keeps the checkpoint's.
        max_shard_bytes: most bytes of weights in one file, unless a single weight is larger.
        force: replace ``output`` if it is there.
        verify: load both and compare their logits.

    Raises:
        UserError: anything that the user can mend; ``output`` is as it was.
    """
    if verify:
        check_verifiable(provider)
    check_checkpoint(source, provider)
    architecture = architecture_of(source / MODEL, provider)
    reader = TorchDistReader(source / MEGATRON)
    everything = places(architecture)
    _check_stored(reader, everything)
    stored = {reader.tensors[place.key].properties.dtype for place in everything}
    to = _target_dtype(stored, dtype, source)
    with _staged(output, force) as staging:
        with console.phase("weights", len(everything), "parameters") as phase:

            def weights() -> Iterator[tuple[str, Tensor]]:
                for place in everything:
                    full = reader.read(place.key, place.index, 0, place.shape)
                    for name, tensor in zip(place.rule.shapes, place.rule.merge([full]), strict=True):
                        yield name, tensor.to(to)
                    phase.advance()

            write_model(staging, weights(), like=source / MODEL, write=True, max_shard_bytes=max_shard_bytes)
        if verify:
            console.say(verify_logits(staging, source / MEGATRON, to, provider))
    console.say(f"Hugging Face model written to {output} ({_spoken(to)})")


def _check_stored(reader: TorchDistReader, everything: list[Place]) -> None:
    """Compare names and shapes of a checkpoint with what the architecture needs."""
    needed = {place.key: place for place in everything}
    found = {key for key in reader.tensors if not key.startswith(_NOT_WEIGHTS)}
    for kind, keys in (("missing", needed.keys() - found), ("unknown", found - needed.keys())):
        if keys:
            shown = ", ".join(sorted(keys)[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(f"{kind} weights in {reader.path} for this {MODEL}/config.json: {shown}{more}")
    for key, place in needed.items():
        size, expected = tuple(reader.tensors[key].size), place.stacked + place.shape
        padding = size[0] - expected[0] if key in VOCABULARY and size[1:] == expected[1:] else 0
        if size != expected and padding <= 0:
            raise UserError(
                f"weight '{key}' in {reader.path} has shape {size}, {MODEL}/config.json makes it {expected}"
            )
        if padding > 0 and reader.read(key, (), expected[0], (padding, *expected[1:])).any():
            raise UserError(
                f"weight '{key}' in {reader.path} has {size[0]} rows, {MODEL}/config.json makes it {expected[0]}, "
                "and the rows beyond are no padding"
            )


def _target_dtype(found: set[torch.dtype], asked: str | None, source: Path) -> torch.dtype:
    if asked is not None:
        return TORCH_DTYPES[asked]
    if len(found) > 1:
        types = ", ".join(sorted(map(_spoken, found)))
        raise UserError(f"{source} has weights of several types ({types}); choose one with --dtype")
    (only,) = found
    if only not in TORCH_DTYPES.values():
        raise UserError(f"{source} has weights of type {_spoken(only)}; choose one with --dtype")
    return only


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _staged(output: Path, force: bool) -> Iterator[Path]:
    """A directory that takes the place of ``output`` if the block ends well, and leaves no trace otherwise."""
    check_output(output, force)
    staging, replaced = (output.with_name(f".{output.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        for left in (staging, replaced):
            if left.exists():
                shutil.rmtree(left)
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{output}: cannot write there: {error.strerror}; choose another place") from error
    try:
        yield staging
        if output.exists():
            output.rename(replaced)
        staging.rename(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if replaced.exists():
        shutil.rmtree(replaced) if replaced.is_dir() else replaced.unlink()
