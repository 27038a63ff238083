"""Hugging Face: the arguments of `TrainingArguments(**arguments)`."""

from typing import Any

from scaler.export.job import Job, yaml_text

_AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def training_arguments(job: Job) -> dict[str, Any]:
    """Give the TrainingArguments.

    Raises:
        BadInput: the micro-batches are unequal.
    """
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": job.micro_batch("per_device_train_batch_size"),
        "gradient_accumulation_steps": job.plan.accumulation,
        "learning_rate": job.answer.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": job.answer.warmup_steps,
        "max_grad_norm": job.max_grad_norm,  # said even where it is 0: its default is 1.0
        "dataloader_drop_last": True,
        "use_cpu": not job.on_gpus,
    }
    if job.plan.zero_stage:
        # "auto": the Trainer fills in its own arguments, and refuses a configuration that differs from them.
        arguments["deepspeed"] = {
            **dict.fromkeys(_AUTO, "auto"),
            "gradient_clipping": job.max_grad_norm,
            "zero_optimization": {"stage": job.plan.zero_stage},
            "zero_allow_untested_optimizer": True,
        }
    return arguments


def training_text(job: Job) -> str:
    """Write the arguments as YAML. Raises BadInput as `training_arguments`."""
    notes = [
        "",
        f"The number of workers, {job.plan.workers}, is the launcher's: `scaler export RUN --to torchrun`.",
    ]
    return yaml_text(job.heading(*notes), training_arguments(job))
