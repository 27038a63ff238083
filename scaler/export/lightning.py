"""Lightning: the arguments of `Trainer(**arguments)`."""

from typing import Any

from scaler.errors import BadInput
from scaler.export.job import Job, yaml_text


def trainer_arguments(job: Job) -> dict[str, Any]:
    """Give the Trainer's arguments.

    Raises:
        BadInput: the micro-batches or the processes of the nodes are unequal, or ZeRO is asked for on CPUs.
    """
    job.micro_batch("the batch_size of a DataLoader that Lightning spreads")
    nodes, devices = job.layout("Trainer(devices=...)")
    if job.plan.zero_stage and not job.on_gpus:
        raise BadInput(
            f"zero_stage: {job.plan.zero_stage} on kind: {job.cluster.kind}, and Lightning's DeepSpeed "
            "strategy takes CUDA devices only",
            hint="`--to deepspeed` runs on CPUs too; or export an answer for a cluster of GPUs",
        )
    return {
        "accelerator": "gpu" if job.on_gpus else "cpu",
        "devices": devices,
        "num_nodes": nodes,
        "strategy": _strategy(job),
        "accumulate_grad_batches": job.plan.accumulation,
        **({"gradient_clip_val": job.max_grad_norm} if job.max_grad_norm else {}),
    }


def trainer_text(job: Job) -> str:
    """Write the arguments as YAML. Raises BadInput as `trainer_arguments`."""
    arguments = trainer_arguments(job)
    notes = [
        "",
        "What the Trainer has no place for, in your module:",
        f"  train_dataloader(): DataLoader(..., batch_size={job.plan.micro_batch}, drop_last=True)",
        f"  configure_optimizers(): learning rate {job.answer.learning_rate!r}, with "
        f"{job.answer.warmup_steps} steps of warm-up",
    ]
    return yaml_text(job.heading(*notes), arguments)


def _strategy(job: Job) -> str:
    if job.plan.zero_stage:
        return f"deepspeed_stage_{job.plan.zero_stage}"
    return "ddp" if job.plan.workers > 1 else "auto"
