"""Every metric that a run logs, with its unit and its meaning: the table behind ``docs/metrics.md`` and the report.

``python -m nemo_ibtpo.reporting.metric_table`` prints the document. The tests hold that it is up to date and that no
run logs a metric that is not in the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, or a family of them.

    Attributes:
        name: as in ``metrics.jsonl``; ``<k>`` stands for a number, ``<phase>`` and ``<name>`` for a name.
        unit: such as ``tokens`` or ``share`` (of 1).
        meaning: one sentence without a full stop, over what is averaged included.
        better: which way training should go, where there is one.
    """

    name: str
    unit: str
    meaning: str
    better: Better | None = None

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names of the family."""
        escaped = re.escape(self.name)
        return re.compile(escaped.replace("<k>", r"\d+").replace("<phase>", r"\w+").replace("<name>", r"\w+"))


@dataclass(frozen=True, slots=True)
class Section:
    """Metrics that belong together."""

    title: str
    text: str
    metrics: tuple[Metric, ...]


def _advantage(part: str, meaning: str) -> tuple[Metric, ...]:
    spread = {"mean": "mean", "std": "standard deviation", "min": "smallest", "max": "largest"}
    return tuple(Metric(f"advantage/{part}_{name}", "1", f"{word} of {meaning}") for name, word in spread.items())


SECTIONS: tuple[Section, ...] = (
    Section(
        "Trees",
        "Of all trees sampled in the step, over all ranks.",
        (
            Metric("train/avg_rate", "reward", "mean reward of a trajectory (Avg-Rate)", "higher"),
            Metric("train/eff_rate", "share", "prompts whose trajectories differ in reward (Eff-Rate)", "higher"),
            Metric("train/source_<name>_avg_rate", "reward", "the same on one data set of data.mixture", "higher"),
            Metric("train/source_<name>_prompts", "prompts", "of the step that came from it"),
            Metric("train/ib_score", "1", "mean IB-Score of the nodes that have a continuation"),
            Metric("train/cov", "1", "mean of Cov(eta1, eta2) over the nodes drawn from twice or more"),
            Metric(
                "train/refilled_prompts",
                "prompts",
                "replaced by others because all rewards were equal (trainer.refill)",
            ),
            Metric("train/trajectories_per_prompt", "trajectories", "G, merged ones counted once a draw"),
            Metric("train/sampled_tokens", "tokens", "drawn by engines for training from the start of the run"),
            Metric("train/sampled_tokens_per_prompt", "tokens", "drawn by engines for a tree"),
            Metric("train/unique_tokens_per_prompt", "tokens", "tokens of a tree, a shared one once"),
            Metric("train/duplicated_tokens_per_prompt", "tokens", "the same summed over the trajectories"),
            Metric("train/steps_per_trajectory", "steps", "mean number of steps of a trajectory"),
            Metric("train/tokens_per_step", "tokens", "mean length of a step, each step of a tree once"),
            Metric("train/truncated_rate", "share", "trajectories that ran into rollout.max_new_tokens", "lower"),
            Metric("train/branches_per_tree", "places", "places at which a later round went on, once a round"),
            Metric(
                "train/branch_depth_steps", "steps", "mean depth of such a place below the prompt; absent without any"
            ),
            Metric("train/branch_depth_tokens", "tokens", "the same in sampled tokens"),
        ),
    ),
    Section(
        "Advantages",
        "Over the steps of the trees that are trained on, or over their trajectories for an advantage that belongs "
        "to these (`grpo`, `ibro`, `treepo`), which has no parts.",
        (
            Metric("train/dropped_groups", "trees", "left out because all rewards are equal", "lower"),
            *_advantage("total", "what the loss uses"),
            *_advantage("global_part", "the comparison with the whole tree"),
            *_advantage("local_part", "the comparison with the parent step, before ib_coef"),
        ),
    ),
    Section(
        "Loss and optimizer",
        "Means over the optimizer steps of the step. Token means weigh a token as the loss does.",
        (
            Metric("train/loss", "1", "the loss, over its global denominator"),
            Metric("train/policy_loss", "1", "its clipped surrogate alone"),
            Metric("train/entropy", "nats", "mean entropy of the distribution a token is drawn from"),
            Metric("train/ratio", "1", "mean of pi / pi_old, 1 in the first update of a step"),
            Metric("train/policy_kl", "nats", "KL(pi_old || pi), estimated by k3"),
            Metric(
                "train/reference_kl", "nats", "KL(pi || reference policy), estimated by k3; with loss.kl_coef only"
            ),
            Metric("train/clip_fraction_high", "share", "tokens with positive advantage that clipping stops"),
            Metric("train/clip_fraction_low", "share", "tokens with negative advantage that clipping stops"),
            Metric("train/advantage_entropy", "nats", "mean of advantage times entropy; with method=ibro only"),
            Metric("train/grad_norm", "1", "global gradient norm before clipping"),
            Metric("train/lr", "1", "learning rate"),
        ),
    ),
    Section(
        "Engine and actor",
        "With d = log pi_actor - log pi_engine of each sampled token, before the first update (docs/algorithm.md, "
        "section 7). The two errors are of tokens that the policy before that update has sampled (lag 0).",
        (
            Metric("mismatch/token_mult_prob_error", "1", "mean of exp(|d|); 1 where both agree", "lower"),
            Metric("mismatch/gen_kl_error", "nats", "KL(engine || actor), estimated by k3", "lower"),
            Metric("mismatch/importance_ratio_mean", "1", "mean of exp(d)"),
            Metric("mismatch/importance_ratio_max", "1", "largest exp(d)"),
            Metric("mismatch/importance_truncated", "share", "tokens whose exp(d) is above loss.tis_cap"),
            Metric(
                "mismatch/effective_sample_size",
                "share",
                "(sum w)^2 / (n sum w^2) of n importance weights w, truncated at loss.tis_cap; 1 where all are equal",
            ),
        ),
    ),
    Section(
        "Trees carried over",
        "With `sampler.carry_over` only. The lag of a token is counted in optimizer steps, from the policy that "
        "sampled it to the one that the step which trains it begins with.",
        (
            Metric("carry_over/lag_<k>_share", "share", "unique tokens of the step's trees whose lag is k"),
            Metric("carry_over/lag_mean", "optimizer steps", "mean lag of these tokens"),
            Metric("carry_over/trees", "trees", "that were begun and go on in the next step"),
            Metric("carry_over/tokens", "tokens", "that these have so far"),
            Metric(
                "carry_over/trees_waited_for",
                "trees",
                "without which the step did not close: later they would have been older than sampler.max_policy_lag",
            ),
            Metric(
                "perf/dropped_tokens",
                "tokens",
                "drawn by engines beyond the moment at which the step closed, and not kept; depends on the machine",
                "lower",
            ),
        ),
    ),
    Section(
        "Verifier",
        "Responses of the step, each counted in one place.",
        (
            Metric("reward/verified", "responses", "judged correct or wrong"),
            Metric("reward/unparsable", "responses", "no boxed answer, or one the verifier cannot read", "lower"),
            Metric("reward/timeouts", "responses", "verification took longer than reward.timeout_s", "lower"),
            Metric("reward/crashes", "responses", "the verifier's process died of it", "lower"),
            Metric("reward/errors", "responses", "a reward function raised or returned no number in [0, 1]", "lower"),
            Metric("reward/<part>", "score", "mean of a part of a reward function, or of a number it returns"),
        ),
    ),
    Section(
        "Validation",
        "On the held-out problems, at step 0, every `trainer.val_period` steps and the last. k is "
        "`trainer.val_samples_per_prompt`.",
        (
            Metric("val/accuracy", "share", "avg@k, mean over problems of the mean reward", "higher"),
            Metric("val/source_<name>_accuracy", "share", "the same on one set of data.validation_mixture", "higher"),
            Metric("val/accuracy_low", "share", "lower end of its 95 % bootstrap interval over problems", "higher"),
            Metric("val/accuracy_high", "share", "upper end of it", "higher"),
            Metric("val/pass_at_<k>", "share", "problems with a correct response among k", "higher"),
            Metric("val/majority_at_<k>", "share", "mean reward of the answer given most often", "higher"),
            Metric("val/mean_response_tokens", "tokens", "mean length of a response"),
            Metric("val/truncated_share", "share", "responses that ran into rollout.max_new_tokens", "lower"),
            Metric("val/unanswered_share", "share", "responses without a boxed answer", "lower"),
            Metric("val/unparsable_share", "share", "the same, or with one that the verifier cannot read", "lower"),
            Metric("val/verifier_limit_share", "share", "verifications that ran into time or memory limits", "lower"),
        ),
    ),
    Section(
        "Probe trees",
        "Grown with each evaluation on the first `probe.num_prompts` of its problems, alike for every arm.",
        (
            Metric("probe/avg_rate", "reward", "mean reward of a trajectory", "higher"),
            Metric("probe/eff_rate", "share", "prompts whose trajectories differ in reward"),
            Metric("probe/ib_score", "1", "mean IB-Score of the nodes that have a continuation"),
            Metric("probe/cov", "1", "mean of Cov(eta1, eta2) over the nodes drawn from twice or more"),
            Metric("probe/entropy", "nats", "mean surprisal of a drawn token"),
        ),
    ),
    Section(
        "Time",
        "Wall-clock seconds on rank 0, waiting for other ranks included.",
        (
            Metric("perf/step_s", "s", "a training step, without validation and saving", "lower"),
            Metric(
                "time/<phase>_s",
                "s",
                "one phase: rollout, trees (writing them), logprobs (where a step makes several updates), "
                "reference_logprobs, train, refit (weights into the engines), validation, save (what saving the step "
                "before kept training waiting)",
                "lower",
            ),
        ),
    ),
    Section(
        "Throughput and memory",
        "Tokens are unique sampled tokens.",
        (
            Metric("perf/tokens_per_s", "tokens/s", "of a whole step, all ranks together", "higher"),
            Metric("perf/tokens_per_s_per_rank", "tokens/s", "the same over the number of ranks", "higher"),
            Metric("perf/rollout_tokens_per_s_per_engine", "tokens/s", "of sampling alone, per engine", "higher"),
            Metric("perf/prefix_hit_rate", "share", "prefix tokens that engines did not compute again", "higher"),
            Metric("perf/microbatches_per_rank", "micro-batches", "of an optimizer step"),
            Metric("perf/microbatch_fill", "share", "of actor.max_tokens_per_microbatch that is used", "higher"),
            Metric(
                "perf/rank_balance",
                "share",
                "mean over largest load of the data-parallel ranks, attention included",
                "higher",
            ),
            Metric("perf/host_memory_peak_gib", "GiB", "peak resident memory since the start, largest of all ranks"),
            Metric(
                "perf/gpu_memory_peak_gib", "GiB", "peak of the step's allocations, largest of all ranks; GPU only"
            ),
        ),
    ),
)


def find_metric(name: str) -> Metric | None:
    """The entry of a name in ``metrics.jsonl``, None if there is none."""
    return next((m for section in SECTIONS for m in section.metrics if m.pattern.fullmatch(name)), None)


def undocumented(names: Sequence[str]) -> list[str]:
    """Those names of a line of ``metrics.jsonl`` that the table does not have."""
    return [name for name in names if name not in ("step", "non_finite") and find_metric(name) is None]


def as_markdown() -> str:
    """The document."""
    lines = [
        "# Metrics",
        "",
        "One JSON object a step in `metrics.jsonl`, and the same to every other backend",
        "([configuration.md](configuration.md#where-metrics-go)). Step 0 is the evaluation before training. A value",
        "that is not finite is `null`, and named under `non_finite`.",
        "",
        "*This page is made from `nemo_ibtpo/reporting/metric_table.py`; `make docs` writes it.*",
    ]
    for section in SECTIONS:
        lines += ["", f"## {section.title}", "", section.text, "", "| name | unit | meaning | better |"]
        lines += ["|---|---|---|---|"]
        for metric in section.metrics:
            meaning = metric.meaning.replace("|", "\\|")
            lines.append(f"| `{metric.name}` | {metric.unit} | {meaning} | {metric.better or ''} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(as_markdown(), end="")
