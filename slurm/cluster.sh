# What is special about this cluster: the one file here to edit. Whatever is set in the environment goes first.
# shellcheck shell=bash
# Read by every script of this directory, on every node.

# Where Python comes from. With none of the three: .venv of this checkout if it is there, else python3 of the PATH.
: "${IBTPO_CONTAINER:=}" # an image for pyxis, such as /images/nemo-ibtpo.sqsh; docker/Dockerfile makes one
: "${IBTPO_VENV:=}"      # directory of a virtual environment; with a container: inside it
: "${IBTPO_MODULES:=}"   # environment modules to load, such as "cuda/12.8 python/3.11"

# Directories that a container sees besides this checkout and the directory of submission: "/data:/data,/models:/models".
: "${IBTPO_MOUNTS:=}"

# Ranks on a node. Empty: as many as Slurm gives GPUs. To be set for a run on CPUs.
: "${IBTPO_RANKS_PER_NODE:=}"

# What becomes of a job whose time is over or whose processes were killed: "yes" queues it again, "no" ends it.
: "${IBTPO_REQUEUE:=yes}"
: "${IBTPO_MAX_IDLE_ATTEMPTS:=3}" # attempts in a row without a new checkpoint after which a job is given up
: "${IBTPO_STOP_SECONDS:=540}"    # time to save after the warning of the time limit, which --signal sends 600 s ahead

# The network, where the default is not the right one.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5
