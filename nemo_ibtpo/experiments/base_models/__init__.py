"""Base models that experiments start from.

``imitation`` trains a small one on worked solutions (``solutions``, ``tokenizer``), ``smollm2`` takes SmolLM2 out of
a package; ``made`` keeps what was made for the next call.
"""
