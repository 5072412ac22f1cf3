#!/usr/bin/env bash
# Submits a command of a run as a SLURM job that starts after the jobs of what it is made from; make ... CLUSTER=slurm
# calls it, with options of sbatch in the variable SBATCH.
#   experiments/slurm/submit.sh RUN_FOLDER [NEEDED_FILE ...] -- fit -c configs/trainer/slurm.yaml ...
# The number of the job is kept in RUN_FOLDER/slurm-<command>.job, its output beside it. What is still in the queue is
# not submitted again.
set -euo pipefail

folder=${1%/}
shift
needed=()
while [[ $1 != -- ]]; do
    needed+=("$1")
    shift
done
shift
command=$1

if ! command -v sbatch >/dev/null; then
    echo "CLUSTER=slurm needs sbatch, which this machine does not have; leave CLUSTER out to run here" >&2
    exit 2
fi

# the number of the job that a file names, if it waits or runs; SLURM knows no numbers of jobs that ended long ago
queued() {
    local job
    [[ -f $1 ]] || return 0
    job=$(<"$1")
    if [[ -n $(squeue --noheader --jobs="$job" 2>/dev/null || true) ]]; then
        echo "$job"
    fi
}

job=$(queued "$folder/slurm-$command.job")
if [[ -n $job ]]; then
    echo "$folder: job $job is in the queue already"
    exit
fi

after=
for file in "${needed[@]}"; do
    job=$(queued "${file%/*}/slurm-fit.job")
    if [[ -n $job ]]; then
        after+=:$job
    elif [[ ! -e $file ]]; then
        echo "there is neither $file nor a job in the queue that makes it" >&2
        exit 2
    fi
done

mkdir -p "$folder"
# words in quotes stay together
if ! words=$(xargs --no-run-if-empty printf '%s\n' <<<"${SBATCH:-}" 2>/dev/null); then
    echo "SBATCH=$SBATCH: a quote is not closed" >&2
    exit 2
fi
options=()
if [[ -n $words ]]; then
    mapfile -t options <<<"$words"
fi
# options of the user come last: they win
job=$(RUN_FOLDER=$folder sbatch --parsable --job-name="neuroalign-$command-$(basename "$(dirname "$folder")")" \
    --output="$folder/slurm-%j.out" ${after:+--dependency=afterok$after --kill-on-invalid-dep=yes} \
    "${options[@]}" "$(dirname "$0")/train.sh" "$@")
# a federation adds the name of the cluster
job=${job%%;*}
echo "$job" >"$folder/slurm-$command.job"
echo "$folder: submitted as job $job${after:+, after${after//:/ }}"
