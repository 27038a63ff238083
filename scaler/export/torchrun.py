"""torchrun: the command line that starts the processes, the numbers beside it as environment variables."""

import shlex
from collections.abc import Sequence

from scaler.export.job import Job

PORT = 29500


def torchrun_command(job: Job, rendezvous: Sequence[str] = ("--standalone",)) -> list[str]:
    """Give the words of the command, up to the script; `rendezvous` says how nodes find each other.

    Raises:
        BadInput: the nodes would get different numbers of processes.
    """
    nodes, processes = job.layout("torchrun")
    return ["torchrun", f"--nnodes={nodes}", f"--nproc-per-node={processes}", *rendezvous]


def exports(job: Job) -> str:
    """Write a shell's export of every number."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in job.environment().items())


def torchrun_text(job: Job) -> str:
    """Write the shell script. Raises BadInput as `torchrun_command`."""
    if job.cluster.nodes_of(job.plan.workers) == 1:
        command, notes = torchrun_command(job), []
    else:
        address = f'"${{MAIN_NODE:?give the address of the first node}}:{PORT}"'
        rendezvous = (f"--rdzv-id={job.plain_name}", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}")
        command = torchrun_command(job, rendezvous)
        notes = ["Run it on every node, with MAIN_NODE set to the address of the first."]
    return (
        "#!/bin/sh\n"
        + job.heading("torchrun knows none of these numbers: the script reads them.", *notes)
        + exports(job)
        + f'exec {" ".join(command)} {shlex.quote(job.script)} "$@"\n'
    )
