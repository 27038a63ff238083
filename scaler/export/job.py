"""Job: one answer on its way to another tool, and what every exporter asks of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer
from scaler.errors import BadInput

_MOST_ENTRIES = 8  # of unequal micro-batches that a message lists


@dataclass(frozen=True)
class Job:
    """An answer, the cluster it is for, and the names that a tool wants beside the numbers."""

    answer: Answer
    cluster: Cluster
    name: str = "training"
    workload: str = "train.py:workload"
    """Address, as `load_workload` takes it."""
    script: str = "train.py"
    """What a launcher starts on every process."""
    max_grad_norm: float = 0.0
    """What gradients were clipped to when this was measured; 0 where they were not."""
    image: str | None = None
    """Container. Default: Ray's own, of the version installed here."""

    @property
    def plan(self) -> BatchPlan:
        """The batch identity."""
        return self.answer.plan

    @property
    def on_gpus(self) -> bool:
        """Whether a worker takes a GPU, and NCCL; on cpu and mock a CPU, and gloo."""
        return self.cluster.kind == "cuda"

    @property
    def backend(self) -> str:
        """torch.distributed's backend."""
        return "nccl" if self.on_gpus else "gloo"

    @property
    def plain_name(self) -> str:
        """The name, as Kubernetes and Slurm take one."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40].strip("-") or "training"

    def micro_batch(self, place: str) -> int:
        """Give the one micro-batch of all workers, for a `place` that takes one number.

        Raises:
            BadInput: the workers' entries differ.
        """
        if self.plan.is_equal:
            return self.plan.micro_batch
        sizes = list(dict.fromkeys(self.plan.micro_batches))
        entries = ", ".join(map(str, sizes[:_MOST_ENTRIES])) + (" ..." if len(sizes) > _MOST_ENTRIES else "")
        raise BadInput(
            f"micro_batches: {entries} on {self.plan.workers} workers, and {place} takes one number",
            hint="`--to ray` weights unequal entries; or take another answer of the run with --workers",
        )

    def layout(self, place: str) -> tuple[int, int]:
        """Give (nodes, processes on each), for a `place` that wants as many on every node.

        Raises:
            BadInput: the nodes would get different numbers of processes, or devices whose order matters.
        """
        workers = self.plan.workers
        nodes = self.cluster.nodes_of(workers)
        counts = [0] * nodes
        for rank in range(workers):
            counts[self.cluster.node_of(rank)] += 1
        if len(set(counts)) > 1:
            raise BadInput(
                f"workers: {workers} on nodes that take {self.cluster.workers_per_node} are "
                f"{' + '.join(map(str, counts[:_MOST_ENTRIES]))}{' ...' if nodes > _MOST_ENTRIES else ''}, "
                f"and {place} starts as many on every node",
                hint=f"take an answer with up to {self.cluster.workers_per_node} workers or whole nodes "
                "with --workers, or `--to ray`",
            )
        self.check_order(place)
        return nodes, counts[0]

    def check_order(self, place: str) -> None:
        """Raise BadInput where each rank must have the one device its micro-batch was made for."""
        if self.cluster.devices and not self.plan.is_equal:
            names = ", ".join(f"{group.workers} x {group.device}" for group in self.cluster.devices)
            raise BadInput(
                f"devices: {names}, with a micro-batch for each, and {place} does not say which rank gets "
                "which device",
                hint="give every device the same micro-batch: `scaler recommend RUN --cluster FILE` without "
                "unequal `devices`",
            )

    def numbers(self) -> dict[str, Any]:
        """Give every number of the configuration by its name."""
        return {
            **self.plan.model_dump(),
            "learning_rate": self.answer.learning_rate,
            "warmup_steps": self.answer.warmup_steps,
            "max_grad_norm": self.max_grad_norm,
            "backend": self.backend,
        }

    def environment(self) -> dict[str, str]:
        """Give the numbers as environment variables, for launchers that know none of them."""
        return {
            f"SCALER_{name.upper()}": ",".join(map(str, value)) if isinstance(value, list) else str(value)
            for name, value in self.numbers().items()
        }

    def heading(self, *more: str) -> str:
        """Write the configuration out in comment lines, and `more` below it."""
        warmup = f", after a linear warm-up of {self.answer.warmup_steps} steps"
        lines = [
            f"{self.plain_name}: {self.plan.arithmetic()} examples per optimizer step; ZeRO stage "
            f"{self.plan.zero_stage}.",
            f"Learning rate {self.answer.learning_rate!r}{warmup if self.answer.warmup_steps else ''}.",
        ]
        return commented([*lines, *more])


def commented(lines: Iterable[str]) -> str:
    """Write comment lines, as shells, YAML and Python read them."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def yaml_text(heading: str, data: dict[str, Any]) -> str:
    """Write a YAML file below its comments."""
    return heading + yaml.safe_dump(data, sort_keys=False, width=110)
