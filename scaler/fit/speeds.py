"""How fast unequal devices are beside each other, from the compute times of their ranks."""

from collections import defaultdict
from collections.abc import Iterable

from scaler.cluster import Cluster
from scaler.records import ThroughputRecord


def with_measured_speeds(cluster: Cluster, records: Iterable[ThroughputRecord]) -> Cluster:
    """Give the cluster with its devices' speeds as measured; as it is where devices are equal or untimed.

    A speed is all examples that a group's ranks computed over the time they took for them, the fastest
    group's being 1: large passes count most, as in training. Waiting for the others is no part of it.
    """
    examples: dict[int, float] = defaultdict(float)
    seconds: dict[int, float] = defaultdict(float)
    groups = [number for number, group in enumerate(cluster.devices) for _ in range(group.workers)]
    for record in records:
        if groups and len(record.rank_compute_s) == len(groups):
            for number, size, took_s in zip(
                groups, record.plan.micro_batches, record.rank_compute_s, strict=True
            ):
                examples[number] += size * record.plan.accumulation
                seconds[number] += took_s
    if not examples:
        return cluster
    rates = {number: examples[number] / seconds[number] for number in examples}
    devices = tuple(
        group.model_copy(update={"speed": rates[number] / max(rates.values())})
        for number, group in enumerate(cluster.devices)
    )
    return cluster.model_copy(update={"devices": devices})
