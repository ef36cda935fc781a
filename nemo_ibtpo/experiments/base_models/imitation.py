"""A small base model from a minute of supervised training.

The result is an ordinary Hugging Face directory. It carries a digest of everything that it was made from, the
settings, the problems and the code that makes it, so that the same call again has nothing to do. The same digest on
the same machine means the same weights.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.paths import conf_dir
from nemo_ibtpo.config.schema import DataConfig
from nemo_ibtpo.data.prompts import PromptTemplate
from nemo_ibtpo.data.rows import BadRow
from nemo_ibtpo.data.sources import read_rows
from nemo_ibtpo.experiments.base_models.made import is_made, making
from nemo_ibtpo.experiments.base_models.solutions import Habits, write_solution
from nemo_ibtpo.experiments.base_models.tokenizer import EOS, PAD, make_tokenizer
from nemo_ibtpo.reporting.progress import RunConsole

_TOKENIZER_SAMPLE = 2000  # solutions from which merges are learned
_IGNORED = -100  # cross_entropy's mark of a position without a label


@dataclass(frozen=True)
class BaseModelSettings:
    """What the base model is and how it is made; the values are in ``conf/demo_base_model.yaml``.

    Attributes:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
            max_position_embeddings, rope_theta, initializer_range: of ``Qwen3Config``.
        seed: of the weights and of the solver's habits.
        num_solutions: solutions to imitate, each once.
        corpus_seed: seed of the problems that are solved in them.
        shortcut_rate, shortcut_error_rate, sign_slip_rate: the solver's habits (``solutions.Habits``).
        batch_size: solutions in an optimizer step.
        lr: peak learning rate; it falls linearly to 0.
        warmup_batches: optimizer steps until the peak.
        weight_decay, clip_grad: of AdamW and of the gradient's norm.
        num_threads: of torch; fixed, because the sums of another number of threads round differently.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float
    initializer_range: float
    seed: int
    num_solutions: int
    corpus_seed: int
    shortcut_rate: float
    shortcut_error_rate: float
    sign_slip_rate: float
    batch_size: int
    lr: float
    warmup_batches: int
    weight_decay: float
    clip_grad: float
    num_threads: int


@dataclass(frozen=True, slots=True)
class Example:
    """A solved problem in tokens.

    Attributes:
        prompt: as training with a recipe would tokenise it.
        response: the solution and the end-of-sequence token, what is learned.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def load_settings() -> BaseModelSettings:
    """The settings of ``make demo``."""
    return BaseModelSettings(**yaml.safe_load((conf_dir() / "demo_base_model.yaml").read_text(encoding="utf-8")))


def make_base_model(directory: Path, settings: BaseModelSettings, data: DataConfig, console: RunConsole) -> bool:
    """Make the base model in ``directory`` unless it is there.

    Args:
        directory: of the model; replaced if an earlier call made it of something else.
        settings: the model and its training.
        data: of the recipe that will train the model: its problems and its prompts.
        console: prints what is done.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: ``directory`` holds something else, or the problems cannot be made.
    """
    digest = digest_of(settings, data)
    if is_made(directory, digest):
        return False
    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    texts = solve_problems(settings, data)
    sample = texts[:_TOKENIZER_SAMPLE]
    tokenizer = make_tokenizer(text for question, solution in sample for text in (question, solution))
    template = PromptTemplate(data, tokenizer)
    eos = (tokenizer.convert_tokens_to_ids(EOS),)
    examples = [Example(template(question), (*tokenizer(solution).input_ids, *eos)) for question, solution in texts]
    model = new_model(settings, tokenizer)
    console.say(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}, {len(examples):,} solutions")
    batches = [examples[i : i + settings.batch_size] for i in range(0, len(examples), settings.batch_size)]
    losses = []
    with console.phase("base model", len(batches), "batches") as phase:
        for loss in imitate(model, batches, settings):
            losses.append(loss)
            phase.advance()
    console.say(f"loss {losses[0]:.2f} at the start, {losses[-1]:.2f} at the end, in nats per token")

    with making(directory, digest) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return True


def solve_problems(settings: BaseModelSettings, data: DataConfig) -> list[tuple[str, str]]:
    """(question, solution) pairs, none of them a validation problem of ``data``.

    Raises:
        UserError: reasoning-gym does not know the task or its options, or the solver cannot solve it.
    """
    habits = Habits(settings.shortcut_rate, settings.shortcut_error_rate, settings.sign_slip_rate)
    rng = random.Random(settings.seed)
    pairs = []
    for row in _rows(data, seed=settings.corpus_seed, size=settings.num_solutions):
        try:
            solution = write_solution(row["metadata"]["entry"]["metadata"]["expression"], habits, rng)
        except (KeyError, ValueError):
            raise UserError(
                f"data.train.path={data.train.path}: the solver only knows sums and differences of numbers without "
                f"sign (basic_arithmetic with operators ['+', '-'], chain_sum), not {row['question']!r}"
            ) from None
        pairs.append((row["question"], solution))
    held_out = {row["question"] for row in _rows(data, seed=data.validation.seed, size=data.validation.size)}
    return [(question, solution) for question, solution in pairs if question not in held_out]


def new_model(settings: BaseModelSettings, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model with tied embeddings whose configuration names the tokenizer's special tokens."""
    eos, pad = tokenizer.convert_tokens_to_ids([EOS, PAD])
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        head_dim=settings.hidden_size // settings.num_attention_heads,
        max_position_embeddings=settings.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        initializer_range=settings.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return Qwen3ForCausalLM(config)


def imitate(
    model: Qwen3ForCausalLM, batches: Sequence[Sequence[Example]], settings: BaseModelSettings
) -> Iterator[float]:
    """Train on every batch once; yields its loss, in nats per response token."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / settings.warmup_batches, 1.0) * (1 - done / len(batches))
    )
    model.train()
    for batch in batches:
        tokens, labels = pad(batch, filler=model.config.pad_token_id)
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield loss.item()
    model.eval()


def pad(batch: Sequence[Example], filler: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels, both [batch, longest]; labels are the response only.

    Padding on the right needs no attention mask under causal attention.
    """
    longest = max(len(example.prompt) + len(example.response) for example in batch)
    tokens = torch.full((len(batch), longest), filler)
    labels = torch.full((len(batch), longest), _IGNORED)
    for row, example in enumerate(batch):
        start, end = len(example.prompt), len(example.prompt) + len(example.response)
        tokens[row, :end] = torch.tensor(example.prompt + example.response)
        labels[row, start:end] = torch.tensor(example.response)
    return tokens, labels


def _rows(data: DataConfig, *, seed: int, size: int | None) -> Iterator[dict[str, Any]]:
    for location, row in read_rows(replace(data.train, seed=seed, size=size)):
        if isinstance(row, BadRow):
            raise UserError(f"{location}: {row.reason}")
        yield row


def digest_of(settings: BaseModelSettings, data: DataConfig) -> str:
    """Hexadecimal digest of the settings, the problems and the code that together determine the model."""
    made_from = {"settings": asdict(settings), "data": asdict(data)}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    for name in ("imitation.py", "solutions.py", "tokenizer.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()
