"""Slurm: a batch script that starts torchrun once on every node."""

import shlex

from scaler.export.job import Job
from scaler.export.torchrun import PORT, exports, torchrun_command

_RENDEZVOUS = (
    '--rdzv-id="$SLURM_JOB_ID"',
    "--rdzv-backend=c10d",
    f'--rdzv-endpoint="$main_node:{PORT}"',
)


def slurm_text(job: Job) -> str:
    """Write the batch script.

    Raises:
        BadInput: the nodes would get different numbers of processes.
    """
    nodes, processes = job.layout("Slurm's --ntasks-per-node")
    options = [
        f"--job-name={job.plain_name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={processes}",
        *([f"--gpus-per-node={processes}"] if job.on_gpus else []),
    ]
    command = " ".join(torchrun_command(job, _RENDEZVOUS))
    return (
        "#!/bin/bash\n"
        + "".join(f"#SBATCH {option}\n" for option in options)
        + job.heading(
            "One task on every node starts its processes; --cpus-per-task has one CPU for each, raise it",
            "for data loading. The script reads these numbers:",
        )
        + exports(job)
        + 'main_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        + f'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {command} {shlex.quote(job.script)} "$@"\n'
    )
