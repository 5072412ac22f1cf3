#!/usr/bin/env bash
# One command of neuroalign on any nodes x GPUs; a fit goes on after each time limit until it is finished.
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --time=24:00:00 experiments/slurm/train.sh \
#       fit -c configs/trainer/slurm.yaml -c configs/stage/fmri_mae.yaml --data configs/data/hcp.yaml
# Submit it in the repository; make train-fmri-mae CLUSTER=slurm SBATCH="--nodes=4 ..." writes that line. What follows
# are defaults that options of sbatch replace. One process a GPU: --ntasks-per-node is their number, and
# --gpus-per-node lets every process see all of them (--gpus-per-task does not). Without GPUs: --gpus-per-node=0.
# Processes find each other at the first node of the job, port 15000 + the last four digits of its number; MASTER_ADDR
# and MASTER_PORT replace them.
#
#SBATCH --job-name=neuroalign
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
# Before the time limit: to this script alone, which must tell the limit from a failure and from scancel.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# How a job ends:
#   finished         status 0; jobs that wait for it (--dependency=afterok) start
#   time limit       processes get SIGTERM, write last.ckpt and end; a fit that wrote one is requeued and goes on from
#                    there, up to MAX_RESTARTS (50) times. A large checkpoint needs an earlier signal:
#                    --signal=B:USR1@600
#   preempted        SLURM itself requeues it (--requeue)
#   scancel          ends the script too, by SIGTERM: not requeued. scancel --signal=USR1 --batch: saves and requeues
#   a process fails  the others are ended (--kill-on-bad-exit) and the job fails: not requeued
set -euo pipefail

restarts=${SLURM_RESTART_COUNT:-0}
limit=${MAX_RESTARTS:-50}
began=$(date +%s)
words=("$@")
if [[ ${1:-} == fit ]]; then
    words+=(--run.resume=auto)
fi

# the cores of a process; each would take all cores of the node
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# lines appear in the output when they are printed, not when a process ends
export PYTHONUNBUFFERED=1
# without it NCCL fails without a reason
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

at_limit=false
# a signal to the job without --batch goes to its processes, not to this script; they may just have ended by themselves
trap 'at_limit=true; scancel --signal=TERM "$SLURM_JOB_ID" || echo "there was no process to tell of the limit"' USR1

echo "job ${SLURM_JOB_ID:?submit this script with sbatch}, start $((restarts + 1)), on ${SLURM_JOB_NODELIST:-}:"
echo "neuroalign ${words[*]}"
# srun does not take --cpus-per-task from sbatch (since SLURM 22.05)
srun --kill-on-bad-exit=1 --cpus-per-task="$OMP_NUM_THREADS" .venv/bin/neuroalign "${words[@]}" &
# a signal ends a wait before what is waited for, whose status may be that of the signal, too
while kill -0 "$!" 2>/dev/null; do
    wait "$!" || true
done
status=0
wait "$!" || status=$?

if ((status == 0)) || [[ $at_limit == false ]]; then
    exit "$status"
fi
# what got nowhere would get nowhere again; the run folder is known where submit.sh submitted this
if [[ ${1:-} != fit ]]; then
    refusal="a ${1:-command} cannot go on from where it was; give it more time (--time)"
elif [[ -n ${RUN_FOLDER:-} && -z $(find "$RUN_FOLDER" -maxdepth 1 -name last.ckpt -newermt "@$began") ]]; then
    refusal="no checkpoint was written in all this time; give it more (--time)"
elif ((restarts >= limit)); then
    refusal="it was restarted $restarts times (MAX_RESTARTS=$limit)"
fi
if [[ -n ${refusal:-} ]]; then
    echo "time limit reached, not requeued: $refusal" >&2
    exit "$status"
fi
echo "time limit reached: requeued, and goes on from last.ckpt"
scontrol requeue "$SLURM_JOB_ID"
