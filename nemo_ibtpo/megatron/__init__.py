"""Where gradients come from: Megatron-Core."""

import logging
import warnings

# Megatron-Core says on every rank that optional accelerators are absent, that its own defaults and calls are
# deprecated, that it reads gradients of received activations, and that whole experts have no shards. None of it is
# for our users to mend.
warnings.filterwarnings("ignore", message="(Transformer Engine and )?Apex (is|are) not installed")
warnings.filterwarnings("ignore", message="full scope is deprecated")
warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
warnings.filterwarnings("ignore", message="`load_state_dict` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
warnings.filterwarnings("ignore", message="`sequence_parallel` is set to `True`, but tensor model parallel size is 1")
# Megatron-Core 0.19 logs, for every model chunk, that its GPTModel has a successor and that its DDP works out by
# itself what a caller may hand it.
for _module in ("models.gpt.gpt_model", "distributed.distributed_data_parallel"):
    logging.getLogger(f"megatron.core.{_module}").setLevel(logging.ERROR)
