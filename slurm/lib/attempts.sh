# The attempts of a job: each start of its script is one. Below <output_dir>/slurm/:
#   <job>/attempts.tsv            number, step of the newest checkpoint at its start, time, nodes
#   <job>/attempt-<n>/            logs of the nodes, the report of the pre-flight
#   latest                        link to the newest attempt
# shellcheck shell=bash

# Sets `attempt` to the directory of the new attempt.
begin_attempt() {
    local output_dir=$1 number
    job_dir=$output_dir/slurm/$SLURM_JOB_ID
    mkdir -p "$job_dir" || fail "cannot write to $output_dir"
    give_up_if_idle "$output_dir"
    number=1
    while [ -e "$job_dir/attempt-$number" ]; do number=$((number + 1)); done
    attempt=$job_dir/attempt-$number
    mkdir "$attempt"
    printf '%s\t%s\t%(%F %T)T\t%s\n' "$number" "$(saved_step "$output_dir")" -1 "$SLURM_JOB_NODELIST" \
        >>"$job_dir/attempts.tsv"
    ln -sfn "$SLURM_JOB_ID/attempt-$number" "$output_dir/slurm/latest"
    say "attempt $number on $SLURM_JOB_NODELIST; logs: $output_dir/slurm/latest/node-*.log"
}

# Step of the newest checkpoint, 0 without one.
saved_step() {
    local target
    target=$(readlink "$1/checkpoints/latest") || target=step_0
    echo "${target##*step_}"
}

# Attempts in a row, up to the last, that found the newest checkpoint that is there now.
idle_attempts() {
    [ -e "$job_dir/attempts.tsv" ] || { echo 0 && return; }
    awk -F '\t' -v step="$(saved_step "$1")" '{ idle = $2 == step ? idle + 1 : 0 } END { print idle + 0 }' \
        "$job_dir/attempts.tsv"
}

give_up_if_idle() {
    if [ "$(idle_attempts "$1")" -ge "$IBTPO_MAX_IDLE_ATTEMPTS" ]; then
        fail "$IBTPO_MAX_IDLE_ATTEMPTS attempts in a row ended without a new checkpoint (step $(saved_step "$1")):" \
            "see $job_dir/attempt-*/node-*.log; a time limit too short for a step, or a node that fails?"
    fi
}

# Put the job back into the queue; Slurm then ends this script.
requeue() {
    local output_dir=$1
    if [ "$IBTPO_REQUEUE" != yes ]; then
        say "not queued again (IBTPO_REQUEUE=$IBTPO_REQUEUE); the same command goes on after step $(saved_step "$output_dir")"
        return
    fi
    give_up_if_idle "$output_dir"
    say "queued again, to go on after step $(saved_step "$output_dir")"
    scontrol requeue "$SLURM_JOB_ID" ||
        fail "Slurm does not queue this job again; submit the same command, which goes on after the last checkpoint"
    sleep 600
}

# The value of a key in status.json, which has one key a line.
status_of() { sed -n "s/^ *\"$2\": \"\{0,1\}\(.*[^\",]\)\"\{0,1\},\{0,1\}$/\1/p" "$1/status.json" 2>/dev/null || true; }
