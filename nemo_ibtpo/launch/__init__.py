"""What a cluster's launcher asks before training: what a recipe wants (``plan``), and whether the nodes are fit for
it (``preflight``). Both are programs of their own, started by ``slurm/``.
"""
