"""A training job of seconds: a random model whose words include boxed answers, so that rewards differ by chance."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from toy_models import VOCAB, random_model
from transformers import PreTrainedTokenizerFast

_WORDS = ["<eos>", "<unk>", "\n\n", "\\boxed{1}", "\\boxed{2}", *(str(n) for n in range(VOCAB - 5))]

_RECIPE = """\
defaults: [config, {{override /data: jsonl}}, {{override /rollout: transformers}}, _self_]
output_dir: {directory}/out
model: {{path: {directory}/model, dtype: fp32}}
actor: {{device: cpu, max_tokens_per_microbatch: 256}}
optimizer: {{lr: 1.0e-3}}
sampler: {{initial_rollouts: 3, rounds: 2, min_new_tokens: 4, max_sequences_per_tree: null}}
rollout:
  max_new_tokens: 24
  max_batch_size: 16
  transformers: {{cache_tokens: 2048}}
data:
  train: {{path: {directory}/train.jsonl, verifier: exact}}
  validation: {{path: {directory}/validation.jsonl, verifier: exact}}
  template: plain
  prompt_format: "{{question}}"
  max_prompt_tokens: 8
reward: {{num_workers: 1}}
trainer:
  max_steps: 4
  num_prompts_per_step: 5  # epochs of 12 problems: batches cross their borders
  num_prompts_per_update: 5
  val_samples_per_prompt: 2
  val_period: 2
  export_period: 0
probe: {{num_prompts: 2, initial_rollouts: 2, branch_points: 1, rollouts_per_branch: 1}}
checkpoint: {{save_period: 2}}
logger: {{tensorboard: false}}
"""


# With one tree at a time the engine's batches, and so the last bits of log-probabilities, depend on no clock.
BITWISE = "sampler.max_trees_in_flight=1"


def write_tiny_job(directory: Path) -> Path:
    """Write model and problems; the recipe that trains on them, in one process unless a layout is given."""
    directory.mkdir(parents=True, exist_ok=True)
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_WORDS)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = directory / "model"
    random_model("qwen3").save_pretrained(model)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>").save_pretrained(model)
    for name, first, count in (("train", 0, 12), ("validation", 40, 4)):
        rows = [{"question": f"{n} 0 {n}", "answer": str(1 + n % 2)} for n in range(first, first + count)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = directory / "job.yaml"
    recipe.write_text(_RECIPE.format(directory=directory))
    return recipe
