"""Ray Train: the arguments of `ScalingConfig`, and a script with a train loop that is ready to run."""

import json
import math
from pathlib import Path
from string import Template
from typing import Any

from scaler.errors import BadInput
from scaler.export.job import Job

_TEMPLATE = Path(__file__).with_name("ray_train.txt")
_STEPS = 1000  # where nothing predicts how many it takes


def scaling_arguments(job: Job) -> dict[str, Any]:
    """Give ScalingConfig's arguments.

    Raises:
        BadInput: unequal devices have a micro-batch each.
    """
    job.check_order("Ray Train")
    return {
        "num_workers": job.plan.workers,
        "use_gpu": job.on_gpus,
        "resources_per_worker": {"CPU": 1, "GPU": 1} if job.on_gpus else {"CPU": 1},
    }


def ray_text(job: Job) -> str:
    """Write the script.

    Raises:
        BadInput: as `scaling_arguments`, or there is a ZeRO stage.
    """
    answer, plan = job.answer, job.plan
    scaling = scaling_arguments(job)
    if plan.zero_stage:
        raise BadInput(
            f"zero_stage: {plan.zero_stage}, and Ray Train's loop is DistributedDataParallel, without ZeRO",
            hint="`--to deepspeed` writes the stage, for `deepspeed.initialize` in a loop of your own",
        )
    micro_batches = f"({plan.micro_batch},) * {plan.workers}" if plan.is_equal else plan.micro_batches
    predicted = answer.examples_to_target
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=job.plain_name,
        arithmetic=plan.arithmetic(),
        workload=json.dumps(job.workload),
        micro_batches=micro_batches,
        accumulation=plan.accumulation,
        learning_rate=repr(answer.learning_rate),
        warmup_examples=answer.warmup_examples,
        examples=math.ceil(predicted.value) if predicted else _STEPS * plan.global_batch,
        examples_are="predicted until the target" if predicted else f"{_STEPS} steps",
        **{name: repr(value) for name, value in scaling.items()},
        backend=job.backend,
    )
