"""The base model must be an ordinary Hugging Face model, trained on nothing that it will be examined in.

Everything is real but small: reasoning-gym makes the problems, and a model of two layers trains on some hundreds of
solutions. Not exercised: the accuracy that the settings of ``make demo`` reach, which a run of the demo shows.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_configs import data_config, dataset_config
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import DataConfig
from nemo_ibtpo.data.prompts import PromptTemplate
from nemo_ibtpo.experiments.base_models.imitation import (
    BaseModelSettings,
    Example,
    digest_of,
    imitate,
    load_settings,
    make_base_model,
    new_model,
    pad,
    solve_problems,
)
from nemo_ibtpo.reporting.progress import RunConsole

SUMS = {
    "operators": ["+"],
    "min_terms": 2,
    "max_terms": 3,
    "min_digits": 1,
    "max_digits": 1,
    "allow_parentheses": False,
    "allow_negation": False,
}


def problems(validation_seed: int = 501, **changes: Any) -> DataConfig:
    ordinary = {
        "source": "reasoning_gym",
        "path": "basic_arithmetic",
        "size": 20,
        "seed": 1,
        "options": SUMS,
        "verifier": "reasoning_gym",
    }
    return data_config(
        train=dataset_config(**ordinary | changes),
        validation=dataset_config(**ordinary | changes | {"seed": validation_seed}),
        prompt_format="{question}\n",
    )


@pytest.fixture(scope="module")
def settings() -> BaseModelSettings:
    return replace(
        load_settings(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_solutions=300,
        corpus_seed=501,  # begins with the validation problems
        lr=1e-2,
        warmup_batches=5,
        num_threads=1,
    )


@pytest.fixture(scope="module")
def made(settings: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "base_model"
    assert make_base_model(directory, settings, problems(), quiet())
    return directory


def quiet() -> RunConsole:
    return RunConsole(0, Console(file=io.StringIO()))


def test_transformers_loads_it(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]) == (4, 2, 2)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = torch.tensor([PromptTemplate(problems(), tokenizer)("Calculate 3 + 4.")])
    assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt.shape[1]


def test_it_learned_something(made: Path, settings: BaseModelSettings) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    solution = "3 + 4 = 7\n\n\\boxed{7}<|endoftext|>"
    prompt, response = (tuple(tokenizer(text).input_ids) for text in ("Calculate 3 + 4.\n", solution))
    tokens, labels = pad([Example(prompt, response)], tokenizer.pad_token_id)
    losses = []
    for model in (new_model(settings, tokenizer), AutoModelForCausalLM.from_pretrained(made)):
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits[0], labels[0, 1:])))
    assert losses[1] < losses[0] - 1, f"nats per token before and after: {losses}"


def test_making_it_again_is_no_work(made: Path, settings: BaseModelSettings) -> None:
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert not make_base_model(made, settings, problems(), quiet())
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_same_settings_give_the_same_model(made: Path, settings: BaseModelSettings) -> None:
    other = made.with_name("other")
    assert make_base_model(other, settings, problems(), quiet())
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (other / name).read_bytes() == (made / name).read_bytes(), name


def test_the_digest_changes_with_all_that_a_model_is_made_of(settings: BaseModelSettings) -> None:
    data = problems()
    digests = [
        digest_of(settings, data),
        digest_of(replace(settings, seed=settings.seed + 1), data),
        digest_of(settings, replace(data, prompt_format="{question} ")),
        digest_of(settings, problems(options=SUMS | {"max_terms": 4})),
        digest_of(settings, problems(validation_seed=502)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_of(settings, problems()) == digests[0]


def test_held_out_problems_are_not_solved_for_it(settings: BaseModelSettings) -> None:
    elsewhere = problems(validation_seed=900_001)
    first_20 = {question for question, _ in solve_problems(replace(settings, num_solutions=20), elsewhere)}
    assert len(first_20) > 10
    solved = {question for question, _ in solve_problems(settings, problems())}
    assert not first_20 & solved, "with validation seed 501 these are the validation problems"
    assert len(solved) > 50


def test_a_task_without_sums_or_differences_is_refused(settings: BaseModelSettings) -> None:
    products = problems(options=SUMS | {"operators": ["*"]})
    with pytest.raises(UserError, match=r"data\.train\.path=basic_arithmetic: the solver only knows sums"):
        solve_problems(settings, products)
    with pytest.raises(UserError, match=r"path=letter_counting: the solver only knows sums"):
        solve_problems(settings, problems(path="letter_counting", options={}))


def test_somebody_elses_directory_is_left_alone(settings: BaseModelSettings, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match="was not made by the demo"):
        make_base_model(tmp_path, settings, problems(), quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_only_the_response_is_learned() -> None:
    tokens, labels = pad([Example((5, 6), (7, 8, 0)), Example((5,), (9, 0))], filler=1)
    assert tokens.tolist() == [[5, 6, 7, 8, 0], [5, 9, 0, 1, 1]]
    assert labels.tolist() == [[-100, -100, 7, 8, 0], [-100, 9, 0, -100, -100]]


def test_the_learning_rate_rises_and_falls(
    settings: BaseModelSettings, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, *arguments: Any, **names: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **names)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    batches = [[Example((5,), (9, 0))]] * 10
    list(imitate(new_model(settings, tokenizer), batches, replace(settings, lr=1.0, warmup_batches=2)))
    # min((done + 1) / 2, 1) * (1 - done / 10)
    assert rates == pytest.approx([0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_the_settings_of_the_demo_fit_the_layout() -> None:
    shipped = load_settings()
    for size in (shipped.num_attention_heads, shipped.num_key_value_heads, shipped.num_hidden_layers):
        assert size % 2 == 0, "TP2 x PP2"
    assert shipped.hidden_size % shipped.num_attention_heads == 0
