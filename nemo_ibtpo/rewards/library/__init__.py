"""Reward functions to use as they are or to copy: ``reward.function=nemo_ibtpo.rewards.library.<module>:<name>``."""
