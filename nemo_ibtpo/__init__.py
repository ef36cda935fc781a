"""IB-TPO: Information Bottleneck driven Tree-based Policy Optimization with a Megatron-Core actor."""

__version__ = "0.1.0"
