"""DeepSpeed: the JSON that `deepspeed.initialize(model=..., optimizer=..., config=FILE)` reads."""

import json
from typing import Any

from scaler.export.job import Job


def deepspeed_config(job: Job) -> dict[str, Any]:
    """Give DeepSpeed's configuration; the optimizer is the user's own.

    Raises:
        BadInput: the micro-batches are unequal.
    """
    plan = job.plan
    return {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": job.micro_batch("train_micro_batch_size_per_gpu"),
        "gradient_accumulation_steps": plan.accumulation,
        "zero_optimization": {"stage": plan.zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": job.max_grad_norm,  # said even where it is 0: DeepSpeed's default is 1.0
        "scheduler": {
            "type": "WarmupLR",
            "params": _warmup(job.answer.learning_rate, job.answer.warmup_steps),
        },
    }


def deepspeed_text(job: Job) -> str:
    """Write the JSON file. Raises BadInput as `deepspeed_config`."""
    return json.dumps(deepspeed_config(job), indent=2) + "\n"


def _warmup(learning_rate: float, steps: int) -> dict[str, Any]:
    """Warm up linearly, one step behind scaler's rate x step / steps.

    WarmupLR gives its first two steps the least rate, and counts from there.
    """
    return {
        "warmup_type": "linear",
        "warmup_min_lr": learning_rate / max(1, steps),
        "warmup_max_lr": learning_rate,
        "warmup_num_steps": max(1, steps - 1),
    }
