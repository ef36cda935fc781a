"""Hugging Face directories: weights read lazily, and models written shard by shard.

Only safetensors files are read, never a pickle. Writing takes a stream of tensors and holds at most one shard; the
directory appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.rope import rope_parameters
from nemo_ibtpo.config.supported import IGNORED_WEIGHTS

_INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Everything beside the weights that a model directory needs to be used as it is.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README*")
_TEMPLATES = "additional_chat_templates"


class SafetensorsDirectory(Mapping[str, Tensor]):
    """Weights of a model directory by name, each read from disk when it is asked for; buffers are left out.

    Raises:
        UserError: there are no safetensors files, or one is missing or corrupt; it is named.
    """

    def __init__(self, path: str | Path) -> None:
        directory = Path(path)
        index = directory / _INDEX
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"]
            self._file_of = {name: directory / file for name, file in weight_map.items()}
        else:
            files = sorted(directory.glob("*.safetensors"))
            self._file_of = {name: file for file in files for name in list(self._open(file).keys())}
        self._file_of = {name: file for name, file in self._file_of.items() if not name.endswith(IGNORED_WEIGHTS)}
        if not self._file_of:
            raise UserError(f"model.path={path}: no *.safetensors file there; other weight formats are not read")

    def __getitem__(self, name: str) -> Tensor:
        return self._open(self._file_of[name]).get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def header(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a weight, without reading it."""
        part = self._open(self._file_of[name]).get_slice(name)
        dtype = _DTYPES.get(part.get_dtype())
        if dtype is None:
            raise UserError(
                f"weight '{name}' in {self._file_of[name]} has type {part.get_dtype()}, which is not read"
            )
        return dtype, tuple(part.get_shape())

    @staticmethod
    def _open(file: Path) -> safe_open:
        try:
            return safe_open(file, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read as safetensors ({error}); copy the model again") from error


def write_model(
    directory: Path,
    weights: Iterable[tuple[str, Tensor]],
    like: Path,
    *,
    write: bool,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a Hugging Face model directory.

    Args:
        directory: replaced if it exists, once the new one is complete.
        weights: (name, full tensor); consumed to the end on every rank, since it may be a collective.
        like: directory whose configuration, tokenizer and generation settings go with the weights.
        write: False on the ranks that only take part in the collective.
        max_shard_bytes: most bytes of weights in one file, unless a single weight is larger; they are held in memory.
    """
    if not write:
        for _ in weights:
            pass
        return
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        copy_companions(like, temporary)
        _write_shards(temporary, weights, max_shard_bytes)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{directory}: the model cannot be written: {error.strerror or error}") from error
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)


def write_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions that the umask gives, which the library's own have not.

    Raises:
        OSError: it cannot be written.
    """
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file}: {error}") from error
    file.chmod(mode)


def copy_companions(model: Path, directory: Path) -> None:
    """Copy what a model directory holds beside its weights: configuration, generation settings, tokenizer."""
    for pattern in _COMPANIONS:
        for file in model.glob(pattern):
            if file.name != _INDEX:
                shutil.copyfile(file, directory / file.name)
    if (model / _TEMPLATES).is_dir():
        shutil.copytree(model / _TEMPLATES, directory / _TEMPLATES, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _write_shards(directory: Path, weights: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0
    dtype = torch.float32

    def flush() -> None:
        nonlocal pending, pending_bytes
        write_tensors(pending, directory / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(pending))
        pending, pending_bytes = {}, 0

    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > max_shard_bytes:
            flush()
        # A copy: the exporter's tensor may be a view of a parameter that goes on changing.
        pending[name] = tensor.detach().to("cpu", copy=True)
        pending_bytes, total_bytes, dtype = pending_bytes + size, total_bytes + size, tensor.dtype
    flush()
    if len(shards) == 1:
        (directory / "shard-0.safetensors").rename(directory / "model.safetensors")
    else:
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            (directory / f"shard-{number}.safetensors").rename(directory / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (directory / _INDEX).write_text(json.dumps(index, indent=2))
    complete_config(directory / "config.json", dtype)


def complete_config(file: Path, dtype: torch.dtype) -> None:
    """Say in a config.json what type the weights have, and spell it as transformers 4 and 5 do, rotary angles too."""
    config = json.loads(file.read_text())
    config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
    rope = rope_parameters(config)
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    file.write_text(json.dumps(config, indent=2) + "\n")
