"""The whole method on a laptop: a base model, IB-TPO under torchrun on CPU ranks, accuracy before and after.

``driver`` makes the model, starts the same command line that a user would and shows the results, ``summary`` reads
them from the run's metrics.
"""
