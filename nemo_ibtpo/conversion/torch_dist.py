"""Megatron's ``torch_dist`` checkpoints read and written one parameter at a time, without process groups.

The format is PyTorch's distributed checkpoint: ``.metadata`` says which box of which tensor lies where, ``*.distcp``
hold the boxes. PyTorch's own reader and writer do the work; what is ours is to ask them for one box after the other.

``.metadata`` is a pickle. It is read by an unpickler that knows the few classes the format is made of and refuses
any other by name, so that a checkpoint of an unknown source cannot run code here.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, maybe_load_config, save_config
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, LoadPlan, LoadPlanner, SavePlan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.conversion.places import Place

_COMMON = "common.pt"
_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "builtins": {"set", "frozenset"},
}


class TorchDistReader:
    """A checkpoint on disk.

    Args:
        path: directory with ``.metadata`` and ``*.distcp``.

    Raises:
        UserError: it is no such directory, or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / ".metadata").is_file():
            raise UserError(f"{path} holds no .metadata: it is not a Megatron torch_dist checkpoint, or not whole")
        try:
            config = maybe_load_config(str(path))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}/metadata.json is damaged: {_line(error)}") from error
        if config is not None and config.sharded_backend != "torch_dist":
            raise UserError(f"{path}: its format is '{config.sharded_backend}'; only torch_dist is read")
        self._reader = dcp.FileSystemReader(str(path))
        metadata = _read_metadata(path / ".metadata")
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._storage: Any = metadata.storage_data
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._chunks: dict[str, dict[tuple[int, ...], list[ChunkStorageMetadata]]] = {}

    def read(self, key: str, index: tuple[int, ...], start: int, shape: tuple[int, ...]) -> Tensor:
        """A box of a stored tensor.

        Args:
            key: of the tensor.
            index: in its first dimensions, which the result does not have.
            start: first row, in the dimension behind them.
            shape: of the result.

        Raises:
            UserError: part of it is not there, or its file is missing or damaged.
        """
        entry = self.tensors[key]
        ones = (1,) * len(index)
        offsets = (*index, start, *(0,) * (len(shape) - 1))
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size((*ones, *shape)))
        near = TensorStorageMetadata(entry.properties, entry.size, self._chunks_at(key, index))
        items = create_read_items_for_chunk_list(key, near, [box])
        if sum(math.prod(item.lengths) for item in items) != math.prod(shape):
            raise UserError(f"{self.path}: part of '{key}' at {list(index)} is not in the checkpoint")
        target = torch.empty((*ones, *shape), dtype=entry.properties.dtype)
        files = sorted({self._storage[item.storage_index].relative_path for item in items})
        try:
            self._reader.read_data(LoadPlan(items), _Into(target)).wait()
        except (OSError, RuntimeError, ValueError, EOFError, AssertionError, pickle.UnpicklingError) as error:
            where = ", ".join(str(self.path / file) for file in files)
            raise UserError(f"{where} is missing or damaged at '{key}': {_line(error)}") from error
        return target.reshape(shape)

    def _chunks_at(self, key: str, index: tuple[int, ...]) -> list[ChunkStorageMetadata]:
        # Asking all chunks of all layers and experts for each of them would take the square of their number.
        if key not in self._chunks:
            by_index: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
            for chunk in self.tensors[key].chunks:
                ranges = (range(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
                for position in itertools.product(*itertools.islice(ranges, len(index))):
                    by_index.setdefault(position, []).append(chunk)
            self._chunks[key] = by_index
        return self._chunks[key].get(index, [])


def write_torch_dist(
    path: Path, places: Iterable[Place], dtype: torch.dtype, load: Callable[[Place], Tensor]
) -> None:
    """Write a checkpoint of weights alone, which Megatron loads under any layout.

    Args:
        path: made if it is not there; empty.
        places: of all parameters.
        dtype: of all parameters.
        load: makes a parameter, uncut; called once for each.

    Raises:
        UserError: what ``load`` raises, or the files cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    # What Megatron's own writer adds to PyTorch's format: the name of the format, and values that are no tensors.
    save_config(CheckpointingConfig("torch_dist", 1), str(path))
    torch.save({}, path / _COMMON)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            dcp.save(
                {},
                storage_writer=dcp.FileSystemWriter(
                    str(path), single_file_per_rank=True, sync_files=True, thread_count=1
                ),
                planner=_OneByOne(places, dtype, load),
                no_dist=True,
            )
    except CheckpointException as error:  # no Exception; it carries the one that was raised
        reason, _ = next(iter(error.failures.values()))
        if isinstance(reason, OSError):
            raise UserError(f"{path}: the checkpoint cannot be written: {_line(reason)}") from error
        raise reason from error


class _OneByOne(DefaultSavePlanner):
    """Plans a checkpoint from names and shapes, and makes each tensor when it is written."""

    def __init__(self, places: Iterable[Place], dtype: torch.dtype, load: Callable[[Place], Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._load, self._dtype = load, dtype
        self._places = {(place.key, _offsets(place)): place for place in places}

    def create_local_plan(self) -> SavePlan:
        properties = TensorProperties(dtype=self._dtype)
        items = []
        for (key, offsets), place in self._places.items():
            sizes = torch.Size((1,) * len(place.index) + place.shape)
            data = TensorWriteData(
                chunk=ChunkStorageMetadata(offsets, sizes),
                properties=properties,
                size=torch.Size(place.stacked + place.shape),
            )
            items.append(WriteItem(MetadataIndex(key, offsets), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        index = write_item.index
        assert index.offset is not None
        place = self._places[index.fqn, index.offset]
        return self._load(place).reshape((1,) * len(place.index) + place.shape).contiguous()


class _Into(LoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        boxed = self._target
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            boxed = boxed.narrow(dim, offset, length)
        return boxed

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    # What follows makes a plan, which the reader of single items above has made already: never called.

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        simple = torch.dtype | torch.layout | torch.memory_format
        if name in _METADATA_CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), simple)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which the format does not have")


def _read_metadata(file: Path) -> Metadata:
    try:
        with file.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
    except (OSError, EOFError, ValueError, AttributeError, ImportError, IndexError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged: {_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is damaged or not to be trusted: {_line(error)}") from error
    if not isinstance(metadata, Metadata):
        raise UserError(f"{file} is damaged: it holds a {type(metadata).__name__}")
    return metadata


def _offsets(place: Place) -> torch.Size:
    return torch.Size(place.index + (0,) * len(place.shape))


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
