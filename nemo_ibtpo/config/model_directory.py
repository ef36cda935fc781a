"""What can be said about a Hugging Face model directory without loading it.

Reads ``config.json``, the headers of the safetensors files and ``tokenizer.json`` as plain JSON, so that a
wrong, half-copied or unsupported model is refused within a second, before torch is imported.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.supported import IGNORED_WEIGHTS, unsupported, unsupported_through_bridge, weight_names

Provider = Literal["own", "bridge"]

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
_EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPARED_BYTES = 1 << 24
_LENGTH_BYTES = 8  # a safetensors file starts with its header's length, little-endian


def read_model_directory(path: str, provider: Provider = "own") -> dict[str, Any]:
    """Check the files of a model and return its ``config.json`` as :func:`read_config` does.

    Args:
        provider: who builds the model; the names of its weights are known beforehand of our own families only.

    Raises:
        UserError: a file is missing or corrupt, or the actor cannot build such a model.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(f"model.path={path}: there is no such directory; give a Hugging Face model directory")
    config = read_config(directory / "config.json", provider)
    places = {name: place for file in _weight_files(directory) for name, place in _tensors(file).items()}
    if provider == "own":
        _check_names(directory, config, set(places))
    if config.get("tie_word_embeddings") and places.keys() >= {_OUTPUT, _EMBEDDING}:
        _check_tied(directory, places[_OUTPUT], places[_EMBEDDING])
    _check_vocabulary(directory / "tokenizer.json", config["vocab_size"])
    return config


def read_config(file: Path, provider: Provider = "own") -> dict[str, Any]:
    """Check what a model's ``config.json`` says of its architecture and return it.

    ``num_key_value_heads`` is always there: a file that lacks it has as many as attention heads. So is
    ``num_experts``, which is null for a dense model.

    Raises:
        UserError: the file is missing or corrupt, or the actor cannot build such a model.
    """
    config = _read_json(file)
    architecture = (config.get("architectures") or ["none"])[0]
    if provider == "own" and architecture not in SUPPORTED_ARCHITECTURES:
        raise UserError(
            f"{file}: architecture {architecture} is not supported; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}, and more with model.provider=bridge, or --provider bridge "
            "of convert (docs/models.md)"
        )
    if provider == "bridge" and (reason := unsupported_through_bridge(config)) is not None:
        raise UserError(f"{file}: {reason}")
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    # transformers writes the number of experts under either name.
    experts = config.get("num_experts", config.get("num_local_experts"))
    with_experts = architecture == "Qwen3MoeForCausalLM"  # refused above with model.provider=bridge
    config["num_experts"] = experts if with_experts else None
    for name in (*_SIZES, "num_key_value_heads", *(_EXPERT_SIZES if with_experts else ())):
        size = config.get(name)
        if type(size) is not int or size < 1:
            raise UserError(f"{file}: {name} must be a positive integer, not {json.dumps(size)}")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % groups:
        raise UserError(f"{file}: {heads} attention heads cannot share {groups} key/value heads evenly")
    if with_experts and config["num_experts_per_tok"] > config["num_experts"]:
        raise UserError(
            f"{file}: num_experts_per_tok is {config['num_experts_per_tok']}, but there are "
            f"{config['num_experts']} experts"
        )
    if provider == "bridge":
        return config
    if (reason := unsupported(config)) is not None:
        raise UserError(f"{file}: {reason}")
    if architecture == "MistralForCausalLM":
        window = config.get("sliding_window", "absent (which means 4096)")
    else:
        window = config.get("sliding_window") if config.get("use_sliding_window") else None
    if window is not None:
        raise UserError(
            f"{file}: sliding-window attention is not supported (sliding_window is {window}); "
            "set it to null if full attention is right for this model"
        )
    return config


def _weight_files(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if not index.exists():
        if single.is_file():
            return [single]
        raise UserError(f"{directory} has neither model.safetensors nor {index.name}; only safetensors are read")
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: weight_map is missing or empty")
    shards = [directory / name for name in sorted(set(names.values()))]
    if single.is_file() and single not in shards:
        raise UserError(
            f"{directory} holds {single.name} and an index of other files ({index.name}); libraries read one or the "
            "other: remove what does not belong to this model"
        )
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{index} names {len(shards)} files, of which these are missing: {', '.join(absent)}")
    return shards


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies.

    Attributes:
        kind: its type and shape.
        start, end: bytes from the beginning of the file.
    """

    file: Path
    kind: tuple[Any, Any]
    start: int
    end: int


def _tensors(file: Path) -> dict[str, _Place]:
    """The tensors of a file, whose size is what its header promises: a torn copy is the usual damage."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(_LENGTH_BYTES))
            header = json.loads(stream.read(min(length, size)))
        header.pop("__metadata__", None)
        data = _LENGTH_BYTES + length
        tensors = {
            name: _Place(
                file,
                (entry["dtype"], entry["shape"]),
                data + entry["data_offsets"][0],
                data + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }
        promised = max(place.end for place in tensors.values())
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise UserError(f"{file} is not a safetensors file, or its header is damaged; copy it again") from None
    if size != promised:
        raise UserError(f"{file} has {size} bytes where its header promises {promised}; copy it again")
    return tensors


def _check_names(directory: Path, config: Mapping[str, Any], found: set[str]) -> None:
    """Compare the names of the weights with those of the architecture."""
    needed = weight_names(config)
    found = {name for name in found if not name.endswith(IGNORED_WEIGHTS)}
    if config.get("tie_word_embeddings"):
        found.discard(_OUTPUT)  # some exporters write the tied copy too
    for kind, names in (("missing", needed - found), ("unknown", found - needed)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            cure = "; tie_word_embeddings=true in config.json if it is the embedding" if names == {_OUTPUT} else ""
            shown = ", ".join(sorted(names)[:3])
            raise UserError(f"{directory}: {kind} weights in the checkpoint: {shown}{more}{cure}")


def _check_tied(directory: Path, output: _Place, embedding: _Place) -> None:
    """A written output layer of a tied model is the embedding, byte for byte."""
    same = output.kind == embedding.kind
    if same:
        with output.file.open("rb") as first, embedding.file.open("rb") as second:
            first.seek(output.start)
            second.seek(embedding.start)
            left = output.end - output.start
            while same and left > 0:
                size = min(left, _COMPARED_BYTES)
                same = first.read(size) == second.read(size)
                left -= size
    if not same:
        raise UserError(
            f"{directory}: config.json ties the output layer to the embedding (tie_word_embeddings), but "
            "lm_head.weight differs from model.embed_tokens.weight; set it to false if the former is right"
        )


def _check_vocabulary(file: Path, vocab_size: int) -> None:
    tokenizer = _read_json(file)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = (token["id"] for token in tokenizer.get("added_tokens") or [])
        highest = max([*ids, *added])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} holds no vocabulary (model.vocab); save it with transformers again") from None
    if highest >= vocab_size:
        raise UserError(
            f"{file} has token ids up to {highest}, but the model embeds only {vocab_size} (vocab_size of "
            "config.json): tokenizer and model do not belong together"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; give a Hugging Face model directory with its tokenizer") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{file} is corrupt: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is corrupt: a JSON object is expected")
    return content
