"""The typed shape of a run's configuration.

YAML under ``conf/`` is the only home of a default: no field here has one. ``config.loader`` composes the YAML with
Hydra; pydantic builds these dataclasses and refuses unknown keys, missing keys, wrong types and values out of range;
``config.validation`` refuses values that contradict each other. Names follow Megatron-Core and NeMo RL where they
have one; sizes carry their unit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

# Exact types (an integer serves as a float, nothing else is converted), no unknown key; the docstring below a field
# is what error messages and `--help` say about it.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(config=STRICT, frozen=True)
class ModelConfig:
    """The model to train."""

    path: str
    """Directory with a Hugging Face model: config.json, safetensors weights and tokenizer."""
    dtype: Literal["fp32", "bf16"]
    """Compute precision of the actor; with bf16 the optimizer keeps fp32 main weights."""
    provider: Literal["own", "bridge"]
    """Who knows how the actor builds the model: this package, or ``bridge``, NVIDIA's megatron-bridge, for families
    beyond those (docs/models.md)."""


@dataclass(config=STRICT, frozen=True)
class ActorConfig:
    """How the Megatron actor is laid out over ranks."""

    device: Literal["auto", "cpu", "cuda"]
    """``cuda`` (NCCL), ``cpu`` (gloo) or ``auto``: cuda where there is one."""
    tensor_model_parallel_size: PositiveInt
    """Ranks that share each layer's matrices."""
    pipeline_model_parallel_size: PositiveInt
    """Stages that share the layers."""
    virtual_pipeline_model_parallel_size: int | None
    """Chunks of layers on each stage, through which the interleaved schedule goes in turn to keep stages busier;
    null gives each stage one run of layers."""
    context_parallel_size: PositiveInt
    """Ranks that share the tokens of each micro-batch."""
    expert_model_parallel_size: PositiveInt
    """Ranks that share each layer's experts, taken from the tensor-, context- and data-parallel ranks of a stage; an
    expert is never cut. 1 for a model without experts."""
    moe_aux_loss_coef: NonNegativeFloat | None
    """Weight of the experts' load-balancing loss over the unique tokens of an optimizer step; null takes
    router_aux_loss_coef of the model's config.json, 0 switches it off."""
    sequence_parallel: bool
    """Shard norms and residuals over the tensor-parallel ranks."""
    use_distributed_optimizer: bool
    """Shard optimizer state over the data- and context-parallel ranks."""
    overlap_grad_reduce: bool | None
    """Reduce gradients over the data-parallel ranks while the backward pass of the last micro-batch goes on; null:
    on GPUs."""
    overlap_param_gather: bool | None
    """Gather the distributed optimizer's weights while the forward pass of the next update goes on, instead of at the
    end of the optimizer step; whoever else needs the weights first waits for them. null: on GPUs, if
    use_distributed_optimizer and overlap_grad_reduce are on."""
    grad_bucket_size: PositiveInt | None
    """Parameters whose gradients are reduced at a time with overlap_grad_reduce; null leaves it to Megatron-Core,
    40 million or a million for each data-parallel rank."""
    recompute: Literal["none", "selective", "full"]
    """Activations recomputed in the backward pass."""
    offload: Literal["none", "optimizer", "all"]
    """What is in host memory while engines sample: nothing, optimizer state and gradient buffers, or weights too."""
    max_tokens_per_microbatch: PositiveInt
    """Most packed tokens in one micro-batch, over all context-parallel ranks together."""
    fused_logprobs: bool
    """Compute log-probabilities straight from hidden states, a chunk of the vocabulary at a time, forward and
    backward. false keeps the float32 logits of a micro-batch for the backward pass, which then multiplies by the
    output layer once less."""
    logprob_chunk_tokens: PositiveInt
    """As much memory is taken for logits as float32 logits of so many tokens need."""
    collective_timeout_s: PositiveFloat
    """A rank that waits so long for another one aborts the run, in seconds; ranks without an engine wait through a
    whole rollout, and through all tries to start an engine."""


@dataclass(config=STRICT, frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, warm-up and decay."""

    lr: PositiveFloat
    """Peak learning rate."""
    min_lr: NonNegativeFloat
    """Learning rate at the end of the decay."""
    warmup_steps: NonNegativeInt
    """Optimizer steps from 0 to ``lr``."""
    decay_steps: NonNegativeInt
    """Optimizer steps from the start until ``min_lr``; 0 means all steps of the run."""
    decay_style: Literal["constant", "linear", "cosine"]
    """Shape of the decay."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    """Decay of Adam's mean of gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    """Decay of Adam's mean of squared gradients."""
    adam_eps: PositiveFloat
    """Adam's constant against division by zero."""
    clip_grad: NonNegativeFloat
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(config=STRICT, frozen=True)
class IBScoreConfig:
    """Constants of the IB-Score and of the advantage's local term."""

    beta: PositiveFloat
    """Weight of exploitation against exploration; > 0."""
    step_probability: Literal["geometric_mean", "product"]
    """Pi(step), the exponential of the mean (``geometric_mean``) or the sum (``product``) of its tokens'
    log-probabilities."""
    value_estimator: Literal["leaf_mean", "children_mean"]
    """P_hat of a node, the mean over its leaves or over its children."""
    selection: Literal["paper", "per_draw"]
    """What ``sampler.name=ib`` branches first: the highest IB-Score (``paper``), or the highest J * u / B
    (``per_draw``), whose return falls with every draw."""


@dataclass(config=STRICT, frozen=True)
class SamplerConfig:
    """How a prompt's tree grows: G = initial_rollouts + (rounds - 1) * branch_points * rollouts_per_branch.

    ``full`` has another shape: G = initial_rollouts * (1 + rollouts_per_branch) ** (rounds - 1).
    """

    name: Literal["ib", "random", "independent", "entropy", "fixed_width", "full"]
    """``ib`` branches where the IB-Score is highest, ``random`` at a random step, ``entropy`` before the least
    likely tokens, ``fixed_width`` at the ends of segments, ``full`` at all of them, ``independent`` never."""
    initial_rollouts: PositiveInt
    """Trajectories from the prompt (the paper's B0)."""
    rounds: PositiveInt
    """Rounds of growth, the first trajectories included (L); 1 for ``independent``."""
    branch_points: PositiveInt
    """Places branched in a round (K), a multiple of initial_rollouts for ``entropy``, 1 for ``full``, which
    branches all of a level."""
    rollouts_per_branch: PositiveInt
    """Continuations sampled from each of them (B)."""
    segment_tokens: PositiveInt | None
    """A step is a segment of so many tokens; null ends steps at blank lines."""
    branch_root: bool
    """Whether ``ib`` and ``random`` may continue the prompt itself; the other samplers have rules of their own."""
    min_new_tokens: int
    """A node is a candidate only with so many tokens left under the length limit."""
    merge: bool
    """Whether a step that is sampled twice at a place becomes one node with two draws; false keeps them apart."""
    max_sequences_per_tree: int | None
    """Sequences that ``ib`` and ``random`` keep in flight in a tree: when one has ended the next branch is chosen
    from what is known (1 is the paper's serial growth); null grows in rounds of branch_points *
    rollouts_per_branch."""
    max_trees_in_flight: PositiveInt
    """Trees grown at once on one engine; with ``carry_over`` this one says how many there are."""
    carry_over: NonNegativeFloat
    """Trees in flight beyond those that a step trains, as a share of these: a step closes when enough trees are
    complete, and the others go on under the next weights. 0 trains what each step began. With several updates a step
    it cost accuracy in a study, with one it did not (docs/results.md)."""
    max_policy_lag: PositiveInt
    """With ``carry_over``, most optimizer steps between the policy that sampled a token and the policy that the step
    which trains it begins with; a step waits for trees that would be too old in the next one."""

    @property
    def trajectories_per_prompt(self) -> int:
        """G, the trajectories of one tree."""
        if self.name == "full":
            return self.initial_rollouts * (1 + self.rollouts_per_branch) ** (self.rounds - 1)
        return self.initial_rollouts + (self.rounds - 1) * self.branch_points * self.rollouts_per_branch


@dataclass(config=STRICT, frozen=True)
class LossConfig:
    """The policy loss, and what it does about an engine that is not quite the actor."""

    name: Literal["clipped", "cispo", "gspo"]
    """``clipped`` stops tokens whose ratio leaves the clip (PPO, GRPO), ``cispo`` bounds their weight and goes on,
    ``gspo`` clips one ratio for all tokens between two branches."""
    clip_eps_low: Annotated[float, Field(gt=0, lt=1)]
    """The ratio is clipped from below to 1 - clip_eps_low."""
    clip_eps_high: PositiveFloat
    """The ratio is clipped from above to 1 + clip_eps_high."""
    kl_coef: NonNegativeFloat
    """Weight of KL(policy || reference policy); 0 skips the reference policy altogether."""
    entropy_coef: NonNegativeFloat
    """Weight of the entropy bonus."""
    normalization: Literal["token_mean", "sequence_mean"]
    """``token_mean`` or ``sequence_mean``, with one global denominator either way."""
    token_weight: Literal["trajectories", "unique", "hierarchical"]
    """A shared token counts for all ``trajectories`` through it, as if they were trained apart, as often as its step
    was drawn (``unique``), or for the share of its parent's weight that its draws are (``hierarchical``)."""
    denominator: Literal["kept", "all", "constant"]
    """The loss is divided by the tokens or groups that are trained (``kept``), or also by those of groups left out
    for equal rewards (``all``), which makes an update with few mixed groups smaller; or, with token_mean, by
    ``rollout.max_new_tokens`` for every trajectory, however long it is (``constant``)."""
    tis_cap: float
    """Truncated importance sampling: policy terms are weighted by min(pi_actor / pi_engine, cap); 0 leaves them
    as they are."""
    max_token_mult_prob_error: float
    """The run stops when engine and actor disagree by more, as the mean of exp(|log pi_actor - log pi_engine|)
    over a step's tokens; 0 never stops it."""


@dataclass(config=STRICT, frozen=True)
class TransformersEngineConfig:
    """What only ``rollout.engine=transformers`` reads."""

    cache_tokens: PositiveInt
    """Key/value slots of one engine, in tokens."""


@dataclass(config=STRICT, frozen=True)
class VLLMEngineConfig:
    """What only ``rollout.engine=vllm`` reads."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    """Share of a GPU's memory that the engine may take for weights, keys and values."""
    kv_cache_gib: PositiveFloat
    """Memory for keys and values where the engine runs on a CPU, in GiB."""
    enforce_eager: bool
    """Run without CUDA graphs; always so on a CPU."""
    start_timeout_s: PositiveFloat
    """An engine that is not ready after so long is restarted."""
    hang_timeout_s: PositiveFloat
    """An engine with work to do that has been silent for so long is restarted."""
    max_restarts: NonNegativeInt
    """Restarts without a rollout in between after which the run gives up."""


@dataclass(config=STRICT, frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    engine: Literal["vllm", "transformers"]
    """``vllm``, in a process beside the rank, or ``transformers``, embedded in the rank (small models)."""
    tensor_parallel_size: PositiveInt
    """Ranks whose devices one engine spreads the model over; 1 for ``transformers``."""
    num_replicas: PositiveInt | None
    """Engines of the run, over which prompts are dealt; null starts as many as there are ranks for (world size /
    tensor_parallel_size)."""
    max_new_tokens: PositiveInt
    """Most tokens of a trajectory, prompt excluded."""
    temperature: PositiveFloat
    """Temperature of the sampling distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Tokens are drawn from the fewest that have this probability together; 1 keeps all. The actor trains the
    distribution over the tokens that were kept (docs/algorithm.md, section 7); ``vllm`` needs a top_k beside it."""
    top_k: NonNegativeInt
    """Tokens are drawn from the so many likeliest; 0 keeps all."""
    repetition_penalty: PositiveFloat
    """Divides positive and multiplies negative logits of the tokens that prompt and response hold already
    (arXiv:1909.05858); 1 changes none. For evaluations: the policy that is trained knows no penalty."""
    stop: list[Annotated[str, Field(min_length=1)]]
    """Texts that end a response."""
    max_batch_size: PositiveInt
    """Sequences decoded at once by one engine."""
    transformers: TransformersEngineConfig
    vllm: VLLMEngineConfig


@dataclass(config=STRICT, frozen=True)
class DatasetConfig:
    """Where problems come from."""

    source: Literal["reasoning_gym", "jsonl", "csv", "parquet", "huggingface"]
    """``reasoning_gym``; files: ``jsonl`` (JSON lines or an array), ``csv`` or ``parquet``; ``huggingface``."""
    path: Annotated[str, Field(min_length=1)]
    """Reasoning-gym task name, path of a file or of a directory of files, or Hugging Face data set id or
    directory."""
    subset: str | None
    """Hugging Face configuration name, several of them with commas between (read one after the other), or null."""
    split: str | None
    """Hugging Face split, or null."""
    question_key: str
    """Column with the question."""
    answer_key: str | None
    """Column with the gold answer, or with a list of answers that are accepted; null where a reward function needs
    none."""
    answer_from: str | None
    """Where in the answer's text the gold answer stands: ``boxed`` (in the last box), ``hashes`` (after the last
    ``####``), a regular expression with one group (its last match), or null: it is the text."""
    size: PositiveInt | None
    """Number of problems (reasoning-gym makes so many); null takes all rows there are."""
    seed: int
    """Seed of a generated data set."""
    options: dict[str, Any]
    """Arguments of the reasoning-gym task."""
    verifier: Literal["reasoning_gym", "math", "exact", "choice", "ifeval"]
    """``reasoning_gym``, ``math`` or ``exact``; in benchmarks also ``choice`` (a letter) and ``ifeval`` (the
    whole response)."""


@dataclass(config=STRICT, frozen=True)
class DataConfig:
    """Problems and how they become prompts."""

    train: DatasetConfig
    """Problems to train on."""
    validation: DatasetConfig
    """Problems to evaluate on."""
    mixture: dict[str, Any]
    """Several training sets in the place of ``train``: name to ``weight`` and the keys that differ from ``train``;
    prompts are drawn in proportion to the weights. ``{}`` draws from ``train`` alone."""
    validation_mixture: dict[str, Any]
    """Several validation sets in the place of ``validation``: name to the keys that differ from ``validation``; each
    has an accuracy of its own in the metrics."""
    template: Literal["chat", "plain", "none"]
    """``chat`` applies the tokenizer's chat template to the filled ``prompt_format`` or to the row's messages,
    ``plain`` takes the filled format as any text, ``none`` as one that holds its special tokens already."""
    template_options: dict[str, Any]
    """Further arguments of the chat template, such as ``{enable_thinking: false}``."""
    prompt_format: str
    """Text with one ``{question}``."""
    system_prompt: str | None
    """System message of the chat template, or null."""
    max_prompt_tokens: PositiveInt
    """A longer prompt is left out and counted."""
    shuffle: bool
    """Draw problems in an order given by the run's seed, another one in each epoch."""


@dataclass(config=STRICT, frozen=True)
class RewardConfig:
    """How responses are judged: by the data sets' verifiers, by functions, or by both."""

    function: str | None
    """Function that judges responses, ``path/to/file.py:name`` or ``package.module:name``; null leaves it to the data
    sets' verifiers (or to ``parts``). docs/guides/reward.md says what it gets and returns."""
    options: dict[str, Any]
    """Further keyword arguments of ``function``."""
    parts: dict[str, Any]
    """Several functions in the place of one: name to ``{function, weight, options}``; ``function: verifier`` is the
    data set's verifier. The reward is their weighted mean, each is a metric ``reward/<name>``."""
    answer_after: Annotated[str, Field(min_length=1)] | None
    """Verifiers look at what follows the last such text of a response, ``</think>`` for models that reason first; a
    response without it has no answer. Functions see the whole response. null looks at everything."""
    batch_size: PositiveInt
    """Responses that one call of a worker judges; more than 1 serves functions that take lists, or wait (async)."""
    max_error_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the responses for which functions may fail (exception, no number in [0, 1], time-out) before the run
    ends; such a response scores 0 and is counted."""
    memory_gib: PositiveFloat
    """Memory that a worker may allocate beyond its imports."""
    write_files: bool
    """Whether workers may write files."""
    network: bool
    """Whether workers have a network, which judges and reward models need."""
    math_tolerance: NonNegativeFloat
    """Relative error at which the ``math`` verifier takes two real numbers for equal; 0 wants exact ones."""
    num_workers: PositiveInt
    """Worker processes per rank that owns an engine."""
    timeout_s: PositiveFloat
    """A call that takes longer is killed, scores 0 and is counted."""


@dataclass(config=STRICT, frozen=True)
class TrainerConfig:
    """The loop."""

    max_steps: PositiveInt
    """Steps of the run."""
    max_sampled_tokens: PositiveInt | None
    """The run ends with the step in which engines have drawn so many tokens for training, over all ranks,
    evaluations apart; null sets no limit but max_steps."""
    num_prompts_per_step: PositiveInt
    """Prompts sampled in a step, over all ranks."""
    num_prompts_per_update: PositiveInt
    """Prompts of one optimizer step; divides ``num_prompts_per_step``."""
    refill: NonNegativeInt
    """Most prompts that a step samples in the place of prompts whose rewards are all equal, until it has
    ``num_prompts_per_step`` mixed groups (DAPO's dynamic sampling); 0 replaces none."""
    rollout_seed: NonNegativeInt
    """Runs that differ in it alone draw other trees for the same prompts, in the same order."""
    val_period: NonNegativeInt
    """Steps between evaluations; 0 evaluates only before and after."""
    val_num_prompts: PositiveInt | None
    """The first so many problems are evaluated; null takes all of data.validation."""
    val_samples_per_prompt: PositiveInt
    """Samples of each problem, the k of avg@k."""
    val_temperature: PositiveFloat
    """Temperature of the evaluation's samples."""
    export_period: NonNegativeInt
    """Steps between exports of the model to ``hf_step_<n>``; 0 exports only at the end, to ``hf``."""
    max_time: str | None
    """``DD:HH:MM:SS`` or ``HH:MM:SS`` after which the run stops at the next safe point, saves and exits as on
    SIGTERM; leave room for saving. null has no limit."""


@dataclass(config=STRICT, frozen=True)
class ProbeConfig:
    """Trees grown at every evaluation that measure all policies alike, whatever sampler trains them.

    ``initial_rollouts`` trajectories from the prompt, then ``rollouts_per_branch`` continuations from each of
    ``branch_points`` random steps. Nothing is learned from them.
    """

    num_prompts: NonNegativeInt
    """Trees, one for each of the first validation problems; 0 grows none."""
    initial_rollouts: PositiveInt
    """Trajectories from the prompt."""
    branch_points: PositiveInt
    """Random steps that are continued, the prompt among the candidates."""
    rollouts_per_branch: PositiveInt
    """Continuations of each of them."""
    ib_score: IBScoreConfig
    """Constants that IB-Scores are computed with, apart from those of training."""


@dataclass(config=STRICT, frozen=True)
class CheckpointConfig:
    """What is saved to go on from."""

    save_period: NonNegativeInt
    """Steps between checkpoints; 0 saves only after the last step and when the run is stopped."""
    async_save: bool
    """Whether training waits only until weights and optimizer state have been copied to host memory, and a thread
    writes them while it goes on. ``nemo-ibtpo plan`` counts the copy; ``false`` needs none."""
    keep_last: PositiveInt
    """Newest checkpoints that are kept, at least 1."""
    keep_best: NonNegativeInt
    """Checkpoints with the highest validation accuracy that are kept besides; only steps that are both saved and
    evaluated have one."""
    resume: str
    """``auto`` goes on from the newest checkpoint in ``output_dir`` and begins where there is none; ``never``
    begins, and is refused where there are checkpoints; a path is the checkpoint to begin from, after which the
    run's own are used as with ``auto``."""
    on_damage: Literal["fall_back", "refuse"]
    """What to do about a checkpoint that is torn or changed: ``fall_back`` sets it aside and uses the newest
    whole one, ``refuse`` ends the run."""
    force: bool
    """Go on although data, model or settings have changed since the checkpoint."""


@dataclass(config=STRICT, frozen=True)
class WandBConfig:
    """A run in Weights & Biases."""

    enabled: bool
    """Whether there is one."""
    project: str
    """Project that the run belongs to."""
    mode: Literal["offline", "online"]
    """``offline`` writes below ``output_dir/wandb``, for ``wandb sync``; ``online`` needs an account."""


@dataclass(config=STRICT, frozen=True)
class MLflowConfig:
    """A run in MLflow."""

    enabled: bool
    """Whether there is one."""
    tracking_uri: str
    """Address of the server, or of a database: ``http://...``, ``sqlite:///<path>``."""
    experiment: str
    """Experiment that the run belongs to; made if it is not there."""


@dataclass(config=STRICT, frozen=True)
class TreesConfig:
    """Which sampled trees are kept in ``output_dir/trees``, for ``nemo-ibtpo inspect``."""

    period: NonNegativeInt
    """Steps between those whose trees are kept; 0 keeps none."""
    trees_per_step: PositiveInt | None
    """Trees of such a step that are kept, those with the smallest problem ids; null keeps all."""
    max_gib: PositiveFloat
    """Room for all of them; when it is full, steps in between are removed so that the rest covers the run."""


@dataclass(config=STRICT, frozen=True)
class LoggerConfig:
    """What is kept for people besides ``metrics.jsonl`` and the console."""

    tensorboard: bool
    """Also write TensorBoard scalars."""
    wandb: WandBConfig
    """Also log to Weights & Biases."""
    mlflow: MLflowConfig
    """Also log to MLflow."""
    trees: TreesConfig
    """Sampled trees."""


@dataclass(config=STRICT, frozen=True)
class RunConfig:
    """A whole run."""

    name: str
    """Name of the run; the recipe's name unless overridden."""
    output_dir: str
    """Everything the run writes lies below it."""
    seed: NonNegativeInt
    """Every random choice of the run derives from it."""
    model: ModelConfig
    actor: ActorConfig
    optimizer: OptimizerConfig
    ib_score: IBScoreConfig
    sampler: SamplerConfig
    method: dict[str, Any]
    """What is learned from trees: ``class``, the import path of the method, and the values of its fields
    (docs/methods.md)."""
    loss: LossConfig
    rollout: RolloutConfig
    data: DataConfig
    reward: RewardConfig
    trainer: TrainerConfig
    probe: ProbeConfig
    checkpoint: CheckpointConfig
    logger: LoggerConfig


@dataclass(config=STRICT, frozen=True)
class BenchmarkConfig:
    """A benchmark: its problems, how they become prompts, and how often each is answered."""

    name: str
    """Name of the benchmark; its results lie in ``output_dir/name``."""
    kind: Literal["open", "choice", "instructions"]
    """``open`` questions, multiple ``choice`` with a letter as the answer, or ``instructions`` (IFEval)."""
    data: DatasetConfig
    """The data set."""
    choice_keys: list[str]
    """Columns of the options of a ``choice`` question, the right one first; they are shown in an order drawn from
    ``benchmark.data.seed`` and the question."""
    samples_per_problem: PositiveInt
    """Samples of each problem, the k of avg@k."""
    template: Literal["chat", "plain", "none"]
    """``chat`` applies the tokenizer's chat template to the filled ``prompt_format`` or to the row's messages,
    ``plain`` takes the filled format as any text, ``none`` as one that holds its special tokens already."""
    template_options: dict[str, Any]
    """Further arguments of the chat template, such as ``{enable_thinking: false}``."""
    prompt_format: str
    """Text with one ``{question}``."""
    system_prompt: str | None
    """System message of the chat template, or null."""
    max_prompt_tokens: PositiveInt
    """A longer prompt is left out and counted."""
    allow_left_out: bool
    """Go on although a row could not be used; otherwise that is refused, since it would be another benchmark."""


@dataclass(config=STRICT, frozen=True)
class EvalConfig:
    """An evaluation of a model on a benchmark."""

    output_dir: str
    """Everything the evaluation writes lies below it; it goes on with what it finds there."""
    seed: NonNegativeInt
    """Seed of the samples."""
    device: Literal["auto", "cpu", "cuda"]
    """Where an engine in this process runs; ``auto`` is cuda where there is one."""
    sampling: Literal["rollout", "generation_config"]
    """Where temperature, top_p, top_k and repetition_penalty come from: the keys of ``rollout``, or the model's
    ``generation_config.json``."""
    model: ModelConfig
    benchmark: BenchmarkConfig
    rollout: RolloutConfig
    reward: RewardConfig
