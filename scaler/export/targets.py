"""Every tool that an answer is exported to, by name."""

from collections.abc import Callable
from typing import NamedTuple

from scaler.decide.config import BatchConfig
from scaler.errors import BadInput, nearest
from scaler.export.accelerate import accelerate_text
from scaler.export.deepspeed import deepspeed_text
from scaler.export.hugging_face import training_text
from scaler.export.job import Job
from scaler.export.kuberay import ray_cluster_text, ray_job_text
from scaler.export.lightning import trainer_text
from scaler.export.ray import ray_text
from scaler.export.ray_launcher import launcher_text
from scaler.export.slurm import slurm_text
from scaler.export.torchrun import torchrun_text


class Target(NamedTuple):
    """What is written for a tool, and how it is read there."""

    text: Callable[[Job], str]
    use: str


TARGETS = {
    "deepspeed": Target(deepspeed_text, "deepspeed.initialize(model=..., optimizer=..., config='{file}')"),
    "ray": Target(ray_text, "python {file}"),
    "accelerate": Target(accelerate_text, "accelerate launch --config_file {file} {script}"),
    "lightning": Target(trainer_text, "Trainer(**yaml.safe_load(open('{file}')))"),
    "hugging-face": Target(training_text, "TrainingArguments(**yaml.safe_load(open('{file}')))"),
    "torchrun": Target(torchrun_text, "sh {file}"),
    "slurm": Target(slurm_text, "sbatch {file}"),
    "kuberay": Target(ray_job_text, "kubectl create -f {file}"),
    "kuberay-cluster": Target(ray_cluster_text, "kubectl create -f {file}"),
    "ray-launcher": Target(launcher_text, "ray up {file}"),
}


def find_target(name: str) -> Target:
    """Give the target of that name.

    Raises:
        BadInput: there is none; names the nearest.
    """
    if name not in TARGETS:
        raise BadInput(
            f"there is no export named {name!r}{nearest(name, TARGETS)}",
            hint=f"choose one of {', '.join(TARGETS)}",
        )
    return TARGETS[name]


def export(
    config: BatchConfig,
    to: str,
    workers: int | None = None,
    workload: str | None = None,
    script: str = "train.py",
    image: str | None = None,
) -> str:
    """Write one answer of a configuration, by default the one to use, for a tool.

    `workload`: its address, `script`: what a launcher starts, `image`: KubeRay's container.

    Raises:
        BadInput: there is no such tool or answer, the cluster is smaller, or the tool has no place for what
            the answer says; names the field.
    """
    target, cluster = find_target(to), config.cluster
    answer = config.answer_for(config.chosen_workers if workers is None else workers)
    if answer.plan.workers > cluster.max_workers:
        raise BadInput(
            f"workers: the answer is for {answer.plan.workers}, and cluster {cluster.name!r} has at most "
            f"{cluster.max_workers}",
            hint="`scaler recommend RUN --cluster FILE` decides for another cluster",
        )
    job = Job(
        answer,
        cluster,
        name=config.workload,
        workload=workload or config.workload,
        script=script,
        max_grad_norm=config.findings.max_grad_norm or 0.0,
        image=image,
    )
    return target.text(job)
