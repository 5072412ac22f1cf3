#!/usr/bin/env bash
# Agents of a Weights & Biases sweep, one for each element of a job array; each trains on one node.
#   sbatch --array=0-7 --gpus-per-node=1 --time=24:00:00 experiments/slurm/sweep.sh ENTITY/PROJECT/SWEEP [agent options]
# (0-31%8 runs eight of 32 at a time.) Submit it in the repository. `make sweep STAGE=...` prints the name of the sweep;
# further words go to `wandb agent`, such as --count 10. A trial whose time is up writes last.ckpt and fails; to finish
# it, run its command line (its page at Weights & Biases shows it) again.
#
#SBATCH --job-name=neuroalign-sweep
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --output=slurm-sweep-%A_%a.out
# Before the time limit the agent is told, and tells its trial. SLURM requeues an element only where it takes the node
# away.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

sweep=${1:?sbatch --array=0-7 experiments/slurm/sweep.sh ENTITY/PROJECT/SWEEP}
shift
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export PYTHONUNBUFFERED=1
# trials are processes of this node, not tasks of srun
unset SLURM_NTASKS SLURM_NPROCS
exec env PATH="$PWD/.venv/bin:$PATH" wandb agent --forward-signals --term-timeout=100 "$@" "$sweep"
