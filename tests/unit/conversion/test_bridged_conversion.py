"""Models of ``--provider bridge`` go to Megatron's format and back, and what their actor saves converts alike.

Why it matters: the names of a checkpoint come from layers, those of a conversion from a list of weights; where they
differ, a run's checkpoint cannot be read back.

megatron-bridge itself is not exercised: ``bridge_stand_in`` takes its place, with Megatron's own layers. Of
Transformer Engine's, Megatron says that they name their tensors like these in a checkpoint;
tests/gpu/test_megatron_bridge_gpu.py asks them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bridge_stand_in
import pytest
import torch
from conversion_models import convert_back, convert_to, weights_of, write_toy_model
from safetensors.torch import load_file, save_file
from toy_models import config_of

from nemo_ibtpo import cli
from nemo_ibtpo.checkpoints import MEGATRON, MODEL
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.bridged_weights import load_bridged
from nemo_ibtpo.megatron.checkpoint import save_weights, tensor_names
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory

CONFIGS = {"llama": config_of("llama"), "qwen3": config_of("qwen3"), "nemotron": bridge_stand_in.nemotron_config()}


def save_as_an_actor_does(source: Path, path: Path) -> None:
    settings = {
        name.removeprefix("actor."): value for name, value in default_values().items() if name.startswith("actor.")
    }
    config = ActorConfig(**settings | {"device": "cpu"})
    weights = SafetensorsDirectory(source)
    context = parallel.initialize(config, 1)
    try:
        actor = MegatronActor(
            load_bridged(source, weights),
            weights,
            actor=config,
            optimizer=None,
            total_updates=1,
            dtype=torch.float32,
            temperature=1.0,
            keep_reference=False,
            context=context,
        )
        with context.scope():
            save_weights(path, actor._chunks)
    finally:
        parallel.shutdown()


@pytest.mark.parametrize("family", CONFIGS)
def test_the_round_trip_is_bitwise_and_so_is_that_of_an_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    bridge_stand_in.install(monkeypatch)
    source = write_toy_model(tmp_path / "hf", config=CONFIGS[family])
    expected = weights_of(source)
    convert_to(source, tmp_path / "megatron", provider="bridge")
    trained = tmp_path / "trained"
    shutil.copytree(tmp_path / "megatron" / MODEL, trained / MODEL)
    save_as_an_actor_does(source, trained / MEGATRON)
    assert tensor_names(trained / MEGATRON) == tensor_names(tmp_path / "megatron" / MEGATRON)
    for checkpoint in ("megatron", "trained"):
        convert_back(tmp_path / checkpoint, tmp_path / "back", provider="bridge", force=True)
        found = weights_of(tmp_path / "back")
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_family_that_both_know_converts_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge_stand_in.install(monkeypatch)
    source = write_toy_model(tmp_path / "hf", "qwen3")
    convert_to(source, tmp_path / "megatron", provider="bridge")
    convert_back(tmp_path / "megatron", tmp_path / "back")
    expected, found = weights_of(source), weights_of(tmp_path / "back")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nemotron")
    write_toy_model(root / "hf", config=bridge_stand_in.nemotron_config(), shard="1GB")
    with pytest.MonkeyPatch.context() as monkeypatch:
        bridge_stand_in.install(monkeypatch)
        convert_to(root / "hf", root / "megatron", provider="bridge")
    return root


def test_weights_that_are_missing_or_unknown(nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge_stand_in.install(monkeypatch)
    norm = "model.layers.1.input_layernorm.bias"
    source = shutil.copytree(nemotron / "hf", tmp_path / "hf")
    weights = load_file(source / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if name != norm}, source / "model.safetensors")
    with pytest.raises(UserError, match=f"missing weights in the checkpoint: {norm}"):
        convert_to(source, tmp_path / "out", provider="bridge")
    save_file({"extra": weights[norm].clone(), **weights}, source / "model.safetensors")
    with pytest.raises(UserError, match="unknown weights in the checkpoint: extra"):
        convert_to(source, tmp_path / "out", provider="bridge")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for convert, name in ((convert_to, "hf"), (convert_back, "megatron")):
        with pytest.raises(UserError, match="--verify with --provider bridge needs a GPU"):
            convert(nemotron / name, tmp_path / "out", provider="bridge", verify=True)
    tied = shutil.copytree(nemotron / "megatron", tmp_path / "tied", ignore=shutil.ignore_patterns("manifest.json"))
    config = json.loads((tied / MODEL / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / MODEL / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"unknown weights in .*: output_layer\.weight$"):
        convert_back(tied, tmp_path / "out", provider="bridge")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("direction", "source", "options", "message"),
    [
        ("hf-to-megatron", "hf", [], "or --provider bridge of convert"),
        ("megatron-to-hf", "megatron", [], "or --provider bridge of convert"),
        ("hf-to-megatron", "hf", ["--provider", "bridge"], "--provider bridge needs megatron-bridge and transformer"),
        ("megatron-to-hf", "megatron", ["--provider", "bridge"], "--provider bridge needs megatron-bridge and tr"),
    ],
)
def test_the_command_line(
    nemotron: Path,
    tmp_path: Path,
    direction: str,
    source: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nemo_ibtpo.config.validation.find_spec", lambda name: None)
    assert cli.main(["convert", direction, str(nemotron / source), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
