"""A written model directory is read alike by other programs: permissions, both spellings, templates."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_models import config_of
from transformers import AutoConfig

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.safetensors_io import write_model


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(2)
        raise OSError(errno.ENOSPC, "No space left on device")

    config_of("qwen3").save_pretrained(tmp_path / "source")
    with pytest.raises(UserError, match="hf: the model cannot be written: No space left on device"):
        write_model(tmp_path / "hf", weights(), like=tmp_path / "source", write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("spelling", [4, 5])
def test_what_is_written_beside_the_weights(tmp_path: Path, family: str, spelling: int) -> None:
    source, output = tmp_path / "source", tmp_path / "hf"
    config = config_of(family)
    config.save_pretrained(source)
    values = json.loads((source / "config.json").read_text())
    if spelling == 4:
        rope = values.pop("rope_parameters")
        values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "float32"}
        (source / "config.json").write_text(json.dumps(values))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    before = os.umask(0o027)
    try:
        write_model(output, [("a", torch.zeros(2, dtype=torch.bfloat16))], like=source, write=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in output.iterdir() if path.is_file()} == {0o640}
    assert (output / "additional_chat_templates" / "tool.jinja").read_text() == "{{ messages }}"
    written = json.loads((output / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert written["rope_theta"] == config.rope_parameters["rope_theta"]
    scaling = written["rope_scaling"] or {}
    assert scaling.get("factor") == config.rope_parameters.get("factor")
    assert AutoConfig.from_pretrained(output).rope_parameters == AutoConfig.from_pretrained(source).rope_parameters
