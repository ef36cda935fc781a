"""A tokenizer without a download, and engines on tiny random models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from toy_models import VOCAB, random_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nemo_ibtpo.rollout.embedded.engine import TransformersEngine
from nemo_ibtpo.rollout.engine import SamplingParams

# Byte-level pieces: "Ġ" is a space, "Ċ" a newline, "Ã" and "©" the two bytes of "é".
PIECES = ["<eos>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", *"0123456789", ".", "Ã", "©", "ab", "ĊĊ", ".Ċ", "Ġthe"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Its last ids have no text, as in models whose vocabulary is padded."""
    assert len(PIECES) < VOCAB
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[]))
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.fixture(scope="session")
def ids() -> Callable[..., list[int]]:
    """Token ids of pieces."""
    return lambda *pieces: [PIECES.index(piece) for piece in pieces]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def make_engine(tokenizer: PreTrainedTokenizerFast) -> Callable[..., TransformersEngine]:
    """An engine on a copy of a model, so that the original can be the plain reference."""

    def make(model: PreTrainedModel | None = None, **options: Any) -> TransformersEngine:
        sizes = {"max_batch_size": 8, "max_model_len": 64, "cache_tokens": 8 * 64 + 2048}
        sizes |= {name: options.pop(name) for name in list(options) if name in sizes}
        model = copy.deepcopy(model) if model is not None else random_model("qwen3")
        return TransformersEngine(model, tokenizer, sampling=SamplingParams(**options), **sizes)

    return make
