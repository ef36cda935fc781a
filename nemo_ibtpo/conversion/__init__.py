"""Models from Hugging Face directories to Megatron checkpoints and back, tensor by tensor, in one process.

Nothing here builds a model except ``verify``: a conversion holds one parameter, and what a shard of the output takes.
"""
