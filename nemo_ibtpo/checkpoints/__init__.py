"""What outlives a process: checkpoints on disk, the status of a run, and requests to stop. No torch.

Layout below a run's ``output_dir``; ``docs/checkpoints.md`` describes every file::

    status.json
    checkpoints/latest -> step_20
    checkpoints/step_20/manifest.json  run.json  config.yaml  megatron/  model/  rng/
"""

MEGATRON = "megatron"  # a directory in Megatron's torch_dist format
MODEL = "model"  # configuration, generation settings and tokenizer of the Hugging Face model
