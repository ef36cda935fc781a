"""Configurations of data sets that differ from an ordinary one in what a test names."""

from __future__ import annotations

from typing import Any

from nemo_ibtpo.config.schema import DataConfig, DatasetConfig


def dataset_config(**changes: Any) -> DatasetConfig:
    ordinary = {
        "source": "jsonl",
        "path": "problems.jsonl",
        "subset": None,
        "split": None,
        "question_key": "question",
        "answer_key": "answer",
        "answer_from": None,
        "size": None,
        "seed": 0,
        "options": {},
        "verifier": "exact",
    }
    return DatasetConfig(**ordinary | changes)


def data_config(**changes: Any) -> DataConfig:
    ordinary = {
        "train": dataset_config(),
        "validation": dataset_config(),
        "mixture": {},
        "validation_mixture": {},
        "template": "plain",
        "template_options": {},
        "prompt_format": "{question}",
        "system_prompt": None,
        "max_prompt_tokens": 100,
        "shuffle": True,
    }
    return DataConfig(**ordinary | changes)
