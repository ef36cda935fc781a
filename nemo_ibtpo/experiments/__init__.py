"""Experiments: what a user can ask of a method, a sampler or a model, one package each.

- ``demo``: the whole method on a laptop (``make demo``).
- ``sampler_comparison``: samplers on the same prompts, without training (``nemo-ibtpo sample``).
- ``training_study``: arms x seeds x tasks, trained at equal tokens (``nemo-ibtpo study``).
- ``base_models``: small models that the others start from.

``records`` keeps what was measured, line by line, so that an interrupted experiment continues. Tables come from
``reporting.tables``, intervals from ``evaluation.statistics``.
"""
