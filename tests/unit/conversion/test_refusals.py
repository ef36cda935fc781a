"""What a conversion does not know, or finds damaged, it refuses by name in one line, and leaves no trace.

Why it matters: a conversion of hours that ends in a stack trace, or in a model with one weight too few, is found out
late. Every case changes one thing of a whole directory. Not exercised: bytes that are wrong while everything about
them is right (the manifest has their SHA-256; resuming a run checks it).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_models import convert_back, convert_to, weights_of, write_toy_model
from safetensors.torch import load_file, save_file

from nemo_ibtpo import cli
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.conversion.torch_dist import TorchDistReader


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_toy_model(root / "hf", "qwen3", shard="1GB")
    convert_to(root / "hf", root / "megatron")
    return root


def refusal(convert: Callable[..., None], source: Path, output: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(source, output, **options)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    assert not list(output.parent.glob(f".{output.name}.*"))
    return str(caught.value)


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, directory / "model.safetensors")


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: change_json(d / "config.json", architectures=["Qwen3NextForCausalLM"]),
            "architecture Qwen3NextForCausalLM is not supported; supported are Llama",
        ),
        (lambda d: change_json(d / "config.json", hidden_act="gelu"), "hidden_act 'gelu' is not supported"),
        (
            lambda d: change_json(d / "config.json", intermediate_size=64),
            "mlp.gate_proj.weight' has shape (48, 32), ",
        ),
        (lambda d: change_weights(d, lambda w: w.pop(NORM)), f"missing weights in the checkpoint: {NORM}"),
        (
            lambda d: change_weights(d, lambda w: w.update({"model.layers.0.mlp.extra.weight": w[NORM].clone()})),
            "unknown weights in the checkpoint: model.layers.0.mlp.extra.weight",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1})),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({NORM: w[NORM].bfloat16()})),
            "has weights of several types (bfloat16, float32); choose one with --dtype",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({NORM: w[NORM].to(torch.int8)})),
            f"weight '{NORM}' in ",
        ),
        (
            lambda d: os.truncate(d / "model.safetensors", 5000),
            "model.safetensors has 5000 bytes where its header pr",
        ),
        (
            lambda d: (d / "model.safetensors").unlink(),
            "has neither model.safetensors nor model.safetensors.index.js",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (shutil.rmtree, "there is no such directory; give a Hugging Face model directory"),
    ],
)
def test_hugging_face_models(models: Path, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    source = shutil.copytree(models / "hf", tmp_path / "hf")
    change(source)
    assert message in refusal(convert_to, source, tmp_path / "out")


def without_manifest(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Past the check of sizes, as in a checkpoint that another program wrote."""

    def changed(directory: Path) -> object:
        (directory / "manifest.json").unlink()
        return change(directory)

    return changed


class Hostile:
    """Would make a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hostile",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: (d / "megatron" / "__0_0.distcp").write_bytes(b""),
            "is damaged: megatron/__0_0.distcp has 0 bytes",
        ),
        (
            without_manifest(lambda d: os.truncate(d / "megatron" / "__0_0.distcp", 9000)),
            "__0_0.distcp is missing or damaged at '",
        ),
        (
            without_manifest(lambda d: (d / "megatron" / "__0_0.distcp").unlink()),
            "__0_0.distcp is missing or damaged at '",
        ),
        (
            without_manifest(lambda d: (d / "megatron" / ".metadata").write_bytes(pickle.dumps(Hostile()))),
            ".metadata is damaged or not to be trusted: it wants to load posix.system, which the format does not",
        ),
        (without_manifest(lambda d: (d / "megatron" / ".metadata").write_bytes(b"")), ".metadata is damaged: "),
        (without_manifest(lambda d: (d / "megatron" / ".metadata").unlink()), "holds no .metadata: it is not a Mega"),
        (
            without_manifest(lambda d: (d / "megatron" / "metadata.json").write_text('{"sharded_backend": "zarr"}')),
            "its format is 'zarr'; only torch_dist is read",
        ),
        (
            without_manifest(lambda d: change_json(d / "model" / "config.json", num_hidden_layers=5)),
            "`num_hidden_layers` (5) must be equal to the number of `layer_types` (4)",
        ),
        (
            without_manifest(lambda d: change_json(d / "model" / "config.json", hidden_size=64)),
            "has shape (61, 32), model/config.json makes it (61, 64)",
        ),
        (
            without_manifest(lambda d: change_json(d / "model" / "config.json", vocab_size=60)),
            "has 61 rows, model/config.json makes it 60, and the rows beyond are no padding",
        ),
        (
            without_manifest(lambda d: change_json(d / "model" / "config.json", model_type="qwen2")),
            "missing weights in ",
        ),
        (
            without_manifest(
                lambda d: change_json(d / "model" / "config.json", model_type="llama", tie_word_embeddings=True)
            ),
            "unknown weights in ",
        ),
        (lambda d: shutil.rmtree(d / "model"), "has no model/: give a checkpoint"),
        (shutil.rmtree, "there is no such directory; give a checkpoint"),
    ],
)
def test_checkpoints(models: Path, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    source = shutil.copytree(models / "megatron", tmp_path / "megatron")
    change(source)
    assert message in refusal(convert_back, source, tmp_path / "out")
    assert not Path("hostile").exists()


def test_a_layer_that_is_not_there(models: Path) -> None:
    reader = TorchDistReader(models / "megatron" / "megatron")
    key = "decoder.layers.mlp.linear_fc2.weight"
    del reader.tensors[key].chunks[2]
    with pytest.raises(UserError, match=r"part of 'decoder.layers.mlp.linear_fc2.weight' at \[2\] is not in the che"):
        reader.read(key, (2,), 0, (32, 48))


def test_what_is_there_is_replaced_only_when_asked(models: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(UserError, match="out is there already; choose another place, or replace it with --force"):
        convert_to(models / "hf", tmp_path / "out")
    source = shutil.copytree(models / "hf", tmp_path / "hf")
    change_weights(source, lambda w: w.pop(NORM))
    with pytest.raises(UserError, match="missing weights"):
        convert_to(source, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "mine").exists()
    convert_to(models / "hf", tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine").exists()
    convert_back(tmp_path / "out", tmp_path / "back")
    assert weights_of(tmp_path / "back").keys() == weights_of(models / "hf").keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hf-to-megatron", "{hf}", "{hf}", "--force"], "holds the source; choose another place for the output"),
        (["megatron-to-hf", "{megatron}", "{root}", "--force"], "holds the source; choose another place"),
        (
            ["megatron-to-hf", "{megatron}", "x", "--max-shard-size", "5"],
            "--max-shard-size 5: write it as 500MB or 5GB",
        ),
        (["hf-to-megatron", "{hf}", "x", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["hf-to-megatron", "{hf}"], "the following arguments are required: output"),
        (["sideways"], "invalid choice: 'sideways'"),
        ([], "the following arguments are required: direction"),
        (["hf-to-megatron", "{hf}", "/proc/x"], "/proc/x: cannot write there"),
    ],
)
def test_the_command_line(models: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"hf": models / "hf", "megatron": models / "megatron", "root": models}
    assert cli.main(["convert", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nemo-ibtpo: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_not_under_torchrun(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["convert", "hf-to-megatron", str(models / "hf"), "x"]) == 2
    assert "convert is one process: start it without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_help_has_examples(direction: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["convert", direction, "--help"])
    assert done.value.code == 0
    assert f"examples:\n  nemo-ibtpo convert {direction} " in capsys.readouterr().out
