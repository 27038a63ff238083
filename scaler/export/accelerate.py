"""Accelerate: the YAML that `accelerate launch --config_file FILE` reads."""

from typing import Any

from scaler.export.job import Job, yaml_text


def accelerate_config(job: Job) -> dict[str, Any]:
    """Give the fields of Accelerate's ClusterConfig.

    Raises:
        BadInput: the micro-batches or the processes of the nodes are unequal.
    """
    job.micro_batch("a DataLoader that Accelerate prepares")
    nodes, _ = job.layout("accelerate launch")
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": _distributed_type(job),
        "num_machines": nodes,
        "num_processes": job.plan.workers,
        "use_cpu": not job.on_gpus,
    }
    if nodes > 1:
        config |= {"machine_rank": 0, "main_process_ip": "MAIN_NODE", "main_process_port": 29500}
    if job.plan.zero_stage:
        config["deepspeed_config"] = {
            "zero_stage": job.plan.zero_stage,
            "gradient_accumulation_steps": job.plan.accumulation,
            "gradient_clipping": job.max_grad_norm,
        }
    elif not job.on_gpus and job.plan.workers > 1:
        config["mpirun_config"] = {"mpirun_hostfile": "hostfile"}  # without it only one process starts
    return config


def accelerate_text(job: Job) -> str:
    """Write the YAML file. Raises BadInput as `accelerate_config`."""
    config, plan = accelerate_config(job), job.plan
    notes = [
        "",
        "What this file has no place for, in your script:",
        f"  DataLoader(..., batch_size={plan.micro_batch}, drop_last=True)",
        f"  Accelerator(gradient_accumulation_steps={plan.accumulation})",
        f"  the optimizer's learning rate {job.answer.learning_rate!r}, with {job.answer.warmup_steps} steps "
        "of warm-up",
    ]
    if job.max_grad_norm and not plan.zero_stage:
        notes.append(f"  accelerator.clip_grad_norm_(model.parameters(), {job.max_grad_norm!r})")
    if plan.workers > 1 and job.answer.warmup_steps:
        notes.append(
            f"  (a schedule that goes through prepare() moves {plan.workers} at every step: give it "
            f"{job.answer.warmup_steps} x {plan.workers} steps of warm-up)"
        )
    if "machine_rank" in config:
        notes.append("On every node: its machine_rank, and the first node's address for MAIN_NODE.")
    if "mpirun_config" in config:
        notes.append("On CPUs `accelerate launch` starts processes through mpirun: name its hostfile.")
    return yaml_text(job.heading(*notes), config)


def _distributed_type(job: Job) -> str:
    if job.plan.zero_stage:
        return "DEEPSPEED"
    if job.plan.workers == 1:
        return "NO"
    return "MULTI_GPU" if job.on_gpus else "MULTI_CPU"
