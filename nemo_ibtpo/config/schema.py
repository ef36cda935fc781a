"""The typed shape of a run's configuration.

YAML under ``conf/`` is the only home of a default: no field here has one. ``config.loader`` composes the YAML
with Hydra, builds these dataclasses and refuses unknown keys, missing keys and wrong types;
``config.validation`` refuses values that contradict each other. Names follow Megatron-Core and NeMo RL where
they have one; sizes carry their unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """The model to train.

    Attributes:
        path: directory with a Hugging Face model: config.json, safetensors weights and tokenizer.
        dtype: compute precision of the actor; with bf16 the optimizer keeps fp32 main weights.
    """

    path: str
    dtype: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class ActorConfig:
    """How the Megatron actor is laid out over ranks.

    Attributes:
        device: ``cuda`` (NCCL), ``cpu`` (gloo) or ``auto``: cuda where there is one.
        tensor_model_parallel_size: ranks that share each layer's matrices.
        pipeline_model_parallel_size: stages that share the layers.
        virtual_pipeline_model_parallel_size: chunks of layers on each stage, through which the interleaved
            schedule goes in turn to keep stages busier; null gives each stage one run of layers.
        expert_model_parallel_size: ranks that share each layer's experts, taken from the tensor- and data-parallel
            ranks of a stage; an expert is never cut. 1 for a model without experts.
        moe_aux_loss_coef: weight of the experts' load-balancing loss over the unique tokens of an optimizer step;
            null takes router_aux_loss_coef of the model's config.json, 0 switches it off.
        sequence_parallel: shard norms and residuals over the tensor-parallel ranks.
        use_distributed_optimizer: shard optimizer state over the data-parallel ranks.
        recompute: activations recomputed in the backward pass.
        max_tokens_per_microbatch: most packed tokens in one micro-batch.
        logprob_chunk_tokens: tokens whose float32 logits are alive at once.
    """

    device: Literal["auto", "cpu", "cuda"]
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    virtual_pipeline_model_parallel_size: int | None
    expert_model_parallel_size: int
    moe_aux_loss_coef: float | None
    sequence_parallel: bool
    use_distributed_optimizer: bool
    recompute: Literal["none", "selective", "full"]
    max_tokens_per_microbatch: int
    logprob_chunk_tokens: int


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, warm-up and decay.

    Attributes:
        lr: peak learning rate.
        min_lr: learning rate at the end of the decay.
        warmup_steps: optimizer steps from 0 to ``lr``.
        decay_steps: optimizer steps from the start until ``min_lr``; 0 means all steps of the run.
        decay_style: shape of the decay.
        weight_decay: decoupled weight decay.
        adam_beta1, adam_beta2, adam_eps: Adam's constants.
        clip_grad: largest global gradient norm; 0 switches clipping off.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int
    decay_style: Literal["constant", "linear", "cosine"]
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    clip_grad: float


@dataclass(frozen=True)
class IBScoreConfig:
    """Constants of the IB-Score and of the advantage's local term.

    Attributes:
        beta: weight of exploitation against exploration; > 0.
        step_probability: pi(step), the exponential of the mean (``geometric_mean``) or the sum (``product``)
            of its tokens' log-probabilities.
        value_estimator: p_hat of a node, the mean over its leaves or over its children.
    """

    beta: float
    step_probability: Literal["geometric_mean", "product"]
    value_estimator: Literal["leaf_mean", "children_mean"]


@dataclass(frozen=True)
class SamplerConfig:
    """How a prompt's tree grows: G = initial_rollouts + (rounds - 1) * branch_points * rollouts_per_branch.

    ``full`` has another shape: G = initial_rollouts * (1 + rollouts_per_branch) ** (rounds - 1).

    Attributes:
        name: ``ib`` branches where the IB-Score is highest, ``random`` at a random step, ``entropy`` before the
            least likely tokens, ``fixed_width`` at the ends of segments, ``full`` at all of them,
            ``independent`` never.
        initial_rollouts: trajectories from the prompt (the paper's B0).
        rounds: rounds of growth, the first trajectories included (L); 1 for ``independent``.
        branch_points: places branched in a round (K), a multiple of initial_rollouts for ``entropy``, 1 for
            ``full``, which branches all of a level.
        rollouts_per_branch: continuations sampled from each of them (B).
        segment_tokens: a step is a segment of so many tokens; null ends steps at blank lines.
        branch_root: whether ``ib`` and ``random`` may continue the prompt itself; the other samplers have rules of
            their own.
        min_new_tokens: a node is a candidate only with so many tokens left under the length limit.
        max_trees_in_flight: trees grown at once on one engine.
    """

    name: Literal["ib", "random", "independent", "entropy", "fixed_width", "full"]
    initial_rollouts: int
    rounds: int
    branch_points: int
    rollouts_per_branch: int
    segment_tokens: int | None
    branch_root: bool
    min_new_tokens: int
    max_trees_in_flight: int

    @property
    def trajectories_per_prompt(self) -> int:
        """G, the trajectories of one tree."""
        if self.name == "full":
            return self.initial_rollouts * (1 + self.rollouts_per_branch) ** (self.rounds - 1)
        return self.initial_rollouts + (self.rounds - 1) * self.branch_points * self.rollouts_per_branch


@dataclass(frozen=True)
class AdvantageConfig:
    """What a step is credited with.

    Attributes:
        name: ``ibtpo``, ``treerl``, ``spo`` (step level), ``grpo``, ``ibro``, ``treepo`` (one advantage a
            trajectory).
        ib_coef: lambda, the weight of the local term; ``ibtpo`` only.
        entropy_coef: weight of the entropy of every token times its advantage; ``ibro`` only.
        zero_variance: ``drop`` leaves a group whose rewards are all equal out, ``keep`` gives it advantage 0.
    """

    name: Literal["ibtpo", "grpo", "ibro", "treerl", "treepo", "spo"]
    ib_coef: float
    entropy_coef: float
    zero_variance: Literal["drop", "keep"]


@dataclass(frozen=True)
class LossConfig:
    """The clipped surrogate, and what it does about an engine that is not quite the actor.

    Attributes:
        clip_eps_low, clip_eps_high: the ratio is clipped to [1 - low, 1 + high].
        kl_coef: weight of KL(policy || reference policy); 0 skips the reference policy altogether.
        entropy_coef: weight of the entropy bonus.
        normalization: ``token_mean`` or ``sequence_mean``, with one global denominator either way.
        token_weight: a shared token counts for all ``trajectories`` through it, as if they were trained apart,
            or once (``unique``).
        tis_cap: truncated importance sampling: policy terms are weighted by min(pi_actor / pi_engine, cap); 0
            leaves them as they are.
        max_token_mult_prob_error: the run stops when engine and actor disagree by more, as the mean of
            exp(|log pi_actor - log pi_engine|) over a step's tokens; 0 never stops it.
    """

    clip_eps_low: float
    clip_eps_high: float
    kl_coef: float
    entropy_coef: float
    normalization: Literal["token_mean", "sequence_mean"]
    token_weight: Literal["trajectories", "unique"]
    tis_cap: float
    max_token_mult_prob_error: float


@dataclass(frozen=True)
class TransformersEngineConfig:
    """What only ``rollout.engine=transformers`` reads.

    Attributes:
        cache_tokens: key/value slots of one engine, in tokens.
    """

    cache_tokens: int


@dataclass(frozen=True)
class VLLMEngineConfig:
    """What only ``rollout.engine=vllm`` reads.

    Attributes:
        gpu_memory_utilization: share of a GPU's memory that the engine may take for weights, keys and values.
        kv_cache_gib: memory for keys and values where the engine runs on a CPU, in GiB.
        enforce_eager: run without CUDA graphs; always so on a CPU.
        start_timeout_s: an engine that is not ready after so long is restarted.
        hang_timeout_s: an engine with work to do that has been silent for so long is restarted.
        max_restarts: restarts without a rollout in between after which the run gives up.
    """

    gpu_memory_utilization: float
    kv_cache_gib: float
    enforce_eager: bool
    start_timeout_s: float
    hang_timeout_s: float
    max_restarts: int


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled.

    Attributes:
        engine: ``vllm``, in a process beside the rank, or ``transformers``, embedded in the rank (small models).
        tensor_parallel_size: ranks whose devices one engine spreads the model over; 1 for ``transformers``.
        num_replicas: engines of the run, over which prompts are dealt; null starts as many as there are ranks
            for (world size / tensor_parallel_size).
        max_new_tokens: most tokens of a trajectory, prompt excluded.
        temperature, top_p, top_k: the sampling distribution (top_k 0 keeps all tokens).
        stop: texts that end a response.
        allow_truncated_sampling: accept top_p < 1 or top_k > 0, whose log-probabilities the actor does not
            reproduce (docs/algorithm.md, section 7).
        max_batch_size: sequences decoded at once by one engine.
    """

    engine: Literal["vllm", "transformers"]
    tensor_parallel_size: int
    num_replicas: int | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: list[str]
    allow_truncated_sampling: bool
    max_batch_size: int
    transformers: TransformersEngineConfig
    vllm: VLLMEngineConfig


@dataclass(frozen=True)
class DatasetConfig:
    """Where problems come from.

    Attributes:
        source: ``reasoning_gym``, ``jsonl``, ``parquet`` or ``huggingface``.
        path: reasoning-gym task name, path of a file or of a directory of files, or Hugging Face data set id or
            directory.
        subset: Hugging Face configuration name, several of them with commas between (read one after the other), or
            null.
        split: Hugging Face split, or null.
        question_key, answer_key: columns of a row.
        size: number of problems (reasoning-gym makes so many); null takes all rows there are.
        seed: seed of a generated data set.
        options: arguments of the reasoning-gym task.
        verifier: ``reasoning_gym``, ``math`` or ``exact``; in benchmarks also ``choice`` (a letter) and ``ifeval``
            (the whole response).
    """

    source: Literal["reasoning_gym", "jsonl", "parquet", "huggingface"]
    path: str
    subset: str | None
    split: str | None
    question_key: str
    answer_key: str
    size: int | None
    seed: int
    options: dict[str, Any]
    verifier: Literal["reasoning_gym", "math", "exact", "choice", "ifeval"]


@dataclass(frozen=True)
class DataConfig:
    """Problems and how they become prompts.

    Attributes:
        train, validation: the data sets.
        template: ``chat`` applies the tokenizer's chat template to the filled ``prompt_format``, ``plain``
            takes it as it is.
        prompt_format: text with one ``{question}``.
        system_prompt: system message of the chat template, or null.
        max_prompt_tokens: a longer prompt is left out and counted.
        shuffle: draw problems in an order given by the run's seed, another one in each epoch.
    """

    train: DatasetConfig
    validation: DatasetConfig
    template: Literal["chat", "plain"]
    prompt_format: str
    system_prompt: str | None
    max_prompt_tokens: int
    shuffle: bool


@dataclass(frozen=True)
class RewardConfig:
    """How answers are verified.

    Attributes:
        num_workers: verifier processes per rank that owns an engine.
        timeout_s: a verification that takes longer is killed, scores 0 and is counted.
    """

    num_workers: int
    timeout_s: float


@dataclass(frozen=True)
class TrainerConfig:
    """The loop.

    Attributes:
        max_steps: steps of the run.
        max_sampled_tokens: the run ends with the step in which engines have drawn so many tokens for training, over
            all ranks, evaluations apart; null sets no limit but max_steps.
        num_prompts_per_step: prompts sampled in a step, over all ranks.
        num_prompts_per_update: prompts of one optimizer step; divides ``num_prompts_per_step``.
        val_period: steps between evaluations; 0 evaluates only before and after.
        val_samples_per_prompt: k of avg@k.
        val_temperature: temperature of the evaluation's samples.
        export_period: steps between exports of the model to ``hf_step_<n>``; 0 exports only at the end, to ``hf``.
        max_time: ``DD:HH:MM:SS`` or ``HH:MM:SS`` after which the run stops at the next safe point, saves and exits
            as on SIGTERM; leave room for saving. null has no limit.
    """

    max_steps: int
    max_sampled_tokens: int | None
    num_prompts_per_step: int
    num_prompts_per_update: int
    val_period: int
    val_samples_per_prompt: int
    val_temperature: float
    export_period: int
    max_time: str | None


@dataclass(frozen=True)
class ProbeConfig:
    """Trees grown at every evaluation that measure all policies alike, whatever sampler trains them.

    ``initial_rollouts`` trajectories from the prompt, then ``rollouts_per_branch`` continuations from each of
    ``branch_points`` random steps. Nothing is learned from them.

    Attributes:
        num_prompts: trees, one for each of the first validation problems; 0 grows none.
        initial_rollouts: trajectories from the prompt.
        branch_points: random steps that are continued, the prompt among the candidates.
        rollouts_per_branch: continuations of each of them.
        ib_score: constants that IB-Scores are computed with, apart from those of training.
    """

    num_prompts: int
    initial_rollouts: int
    branch_points: int
    rollouts_per_branch: int
    ib_score: IBScoreConfig


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved to go on from.

    Attributes:
        save_period: steps between checkpoints; 0 saves only after the last step and when the run is stopped.
        keep_last: newest checkpoints that are kept, at least 1.
        keep_best: checkpoints with the highest validation accuracy that are kept besides; only steps that are both
            saved and evaluated have one.
        resume: ``auto`` goes on from the newest checkpoint in ``output_dir`` and begins where there is none;
            ``never`` begins, and is refused where there are checkpoints; a path is the checkpoint to begin from,
            after which the run's own are used as with ``auto``.
        on_damage: what to do about a checkpoint that is torn or changed: ``fall_back`` sets it aside and uses the
            newest whole one, ``refuse`` ends the run.
        force: go on although data, model or settings have changed since the checkpoint.
    """

    save_period: int
    keep_last: int
    keep_best: int
    resume: str
    on_damage: Literal["fall_back", "refuse"]
    force: bool


@dataclass(frozen=True)
class WandBConfig:
    """A run in Weights & Biases.

    Attributes:
        enabled: whether there is one.
        project: that it belongs to.
        mode: ``offline`` writes below ``output_dir/wandb``, for ``wandb sync``; ``online`` needs an account.
    """

    enabled: bool
    project: str
    mode: Literal["offline", "online"]


@dataclass(frozen=True)
class MLflowConfig:
    """A run in MLflow.

    Attributes:
        enabled: whether there is one.
        tracking_uri: of the server, or of a database: ``http://...``, ``sqlite:///<path>``.
        experiment: that it belongs to; made if it is not there.
    """

    enabled: bool
    tracking_uri: str
    experiment: str


@dataclass(frozen=True)
class TreesConfig:
    """Which sampled trees are kept in ``output_dir/trees``, for ``nemo-ibtpo inspect``.

    Attributes:
        period: steps between those whose trees are kept; 0 keeps none.
        trees_per_step: trees of such a step that are kept, those with the smallest problem ids; null keeps all.
        max_gib: room for all of them; when it is full, steps in between are removed so that the rest covers the run.
    """

    period: int
    trees_per_step: int | None
    max_gib: float


@dataclass(frozen=True)
class LoggerConfig:
    """What is kept for people besides ``metrics.jsonl`` and the console.

    Attributes:
        tensorboard: also write TensorBoard scalars.
        wandb: also log to Weights & Biases.
        mlflow: also log to MLflow.
        trees: sampled trees.
    """

    tensorboard: bool
    wandb: WandBConfig
    mlflow: MLflowConfig
    trees: TreesConfig


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        name: name of the run; the recipe's name unless overridden.
        output_dir: everything the run writes lies below it.
        seed: every random choice of the run derives from it.
    """

    name: str
    output_dir: str
    seed: int
    model: ModelConfig
    actor: ActorConfig
    optimizer: OptimizerConfig
    ib_score: IBScoreConfig
    sampler: SamplerConfig
    advantage: AdvantageConfig
    loss: LossConfig
    rollout: RolloutConfig
    data: DataConfig
    reward: RewardConfig
    trainer: TrainerConfig
    probe: ProbeConfig
    checkpoint: CheckpointConfig
    logger: LoggerConfig


@dataclass(frozen=True)
class BenchmarkConfig:
    """A benchmark: its problems, how they become prompts, and how often each is answered.

    Attributes:
        name: of the benchmark; its results lie in ``output_dir/name``.
        kind: ``open`` questions, multiple ``choice`` with a letter as the answer, or ``instructions`` (IFEval).
        data: the data set.
        choice_keys: columns of the options of a ``choice`` question, the right one first; they are shown in an order
            drawn from ``benchmark.data.seed`` and the question.
        samples_per_problem: k of avg@k.
        template: ``chat`` applies the tokenizer's chat template to the filled ``prompt_format``, ``plain``
            takes it as it is.
        prompt_format: text with one ``{question}``.
        system_prompt: system message of the chat template, or null.
        max_prompt_tokens: a longer prompt is left out and counted.
        allow_left_out: go on although a row could not be used; otherwise that is refused, since it would be another
            benchmark.
    """

    name: str
    kind: Literal["open", "choice", "instructions"]
    data: DatasetConfig
    choice_keys: list[str]
    samples_per_problem: int
    template: Literal["chat", "plain"]
    prompt_format: str
    system_prompt: str | None
    max_prompt_tokens: int
    allow_left_out: bool


@dataclass(frozen=True)
class EvalConfig:
    """An evaluation of a model on a benchmark.

    Attributes:
        output_dir: everything the evaluation writes lies below it; it goes on with what it finds there.
        seed: of the samples.
        device: where an engine in this process runs; ``auto`` is cuda where there is one.
    """

    output_dir: str
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    model: ModelConfig
    benchmark: BenchmarkConfig
    rollout: RolloutConfig
    reward: RewardConfig
