"""What a run is computed on: its precision, and the processes that SLURM starts."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info

from contracts import DataError

FULL_PRECISION = ("32-true", "32", "64-true", "64")


def choose_precision(given: str | None, *, command: str, accelerator: str, closed_form: bool, bf16: bool) -> str | None:
    """Choose what a command computes in, and say so where there was something to choose.

    Fits by gradients may be computed in bfloat16, weights and sums in float32 (``bf16-mixed``). Everything that is
    scored is computed in float32, so that scores do not depend on the GPU, and so are closed-form solutions.

    Args:
        given: ``--trainer.precision``; None where it is left to us.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        accelerator: ``--trainer.accelerator``.
        closed_form: Whether the stage is solved in closed form; lower precision is then refused, even if given.
        bf16: Whether bfloat16 is wanted where the GPU has it.

    Returns:
        The precision for Lightning; None for its default, float32.
    """
    if given is not None:
        if not closed_form or str(given) in FULL_PRECISION:
            return given
        rank_zero_info(f"precision: float32 instead of {given} (a closed-form stage)")
        return "32-true"
    if not bf16:
        return None
    reason = _against_bf16(command, accelerator, closed_form)
    rank_zero_info(f"precision: float32 ({reason})" if reason else "precision: bf16-mixed (this GPU has bfloat16)")
    return None if reason else "bf16-mixed"


def _against_bf16(command: str, accelerator: str, closed_form: bool) -> str:
    """Why a command is not computed in bfloat16; empty if it is."""
    if command != "fit":
        return "scores must not depend on the GPU"
    if closed_form:
        return "a closed-form stage"
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "no GPU"
    # older GPUs emulate it, more slowly than float32
    return "" if torch.cuda.is_bf16_supported(including_emulation=False) else "this GPU has no bfloat16 of its own"


def slurm_processes() -> dict[str, Any]:
    """Arguments of the trainer by which the tasks that ``srun`` has started are the processes of the run.

    Lightning's own requeueing is off: its checkpoints are neither put in place by one rename nor exact.
    ``experiments/slurm/train.sh`` requeues, and the run goes on from its ``last.ckpt``.

    Raises:
        DataError: Not started by ``srun``, or not with ``--ntasks-per-node`` processes on every node, or a process
            does not see the GPUs of all processes of its node.
    """
    # the batch script has the other variables, too, but only tasks have a step
    if "SLURM_STEP_ID" not in os.environ:
        raise DataError(
            "configs/trainer/slurm.yaml is for processes that srun starts within a SLURM job; submit one with make "
            "train-... CLUSTER=slurm, or take TRAINER=cpu, gpu or ddp"
        )
    tasks, nodes, per_node = (int(os.environ.get(name, 1)) for name in ("SLURM_NTASKS", "SLURM_NNODES", _PER_NODE))
    if tasks != nodes * per_node:
        raise DataError(
            f"SLURM started {tasks} processes on {nodes} nodes, but --ntasks-per-node is {per_node}; ask for equally "
            "many on every node with --nodes and --ntasks-per-node, and leave --ntasks out"
        )
    seen = torch.cuda.device_count()
    if 0 < seen < per_node:
        raise DataError(
            f"{per_node} processes a node, each of which sees {seen} of its GPUs; ask for them with "
            f"--gpus-per-node={per_node} and not with --gpus-per-task"
        )
    # Lightning takes processes in an interactive allocation (salloc) for ones that srun did not start
    warnings.filterwarnings("ignore", "The `srun` command is available on your system but is not used")
    return {"devices": per_node, "num_nodes": nodes, "plugins": [SLURMEnvironment(auto_requeue=False)]}


_PER_NODE = "SLURM_NTASKS_PER_NODE"
