"""What the memory of one device buys: the decision again for each size, everything else as measured."""

from collections.abc import Callable, Sequence

from scaler.cluster import Cluster
from scaler.decide.config import BatchConfig, SweepPoint
from scaler.errors import BadInput, NothingFeasible
from scaler.units import parse_sizes

SWEPT = "device-memory"


def parse_sweep(words: Sequence[str] | None) -> tuple[int, ...]:
    """Read `device-memory 8,16,24GiB`, in bytes, smallest first; nothing gives nothing.

    Raises:
        BadInput: another factor, or sizes that cannot be read.
    """
    if words is None:
        return ()
    factor, sizes = words
    if factor != SWEPT:
        raise BadInput(f"--sweep {factor}: only {SWEPT} can be swept", hint=f"--sweep {SWEPT} 8,16,24GiB")
    try:
        return tuple(sorted(set(parse_sizes(sizes))))
    except ValueError as error:
        raise BadInput(f"--sweep {factor}: {error}", hint=f"--sweep {SWEPT} 8,16,24GiB") from None


def with_memory(cluster: Cluster, device_memory_bytes: int) -> Cluster:
    """Give the cluster with another memory of every device.

    Raises:
        BadInput: its devices are unequal, or the reserve takes all of it.
    """
    if cluster.devices:
        raise BadInput(
            f"{cluster.name} has unequal devices: there is no one memory to sweep",
            hint="sweep a cluster with device_memory",
        )
    if device_memory_bytes <= cluster.reserve_bytes:
        raise BadInput(
            f"a device memory of {device_memory_bytes} bytes is not above the reserve of "
            f"{int(cluster.reserve_bytes)}",
            hint="sweep larger sizes, or lower --reserve",
        )
    return cluster.model_copy(update={"device_memory_bytes": device_memory_bytes})


def sweep_memory(
    decide: Callable[[Cluster], BatchConfig], cluster: Cluster, sizes: Sequence[int]
) -> tuple[SweepPoint, ...]:
    """Decide again for each memory of one device, in bytes.

    Raises:
        BadInput: a size cannot be.
    """
    points = []
    for size in sizes:
        limited = with_memory(cluster, size)
        try:
            chosen = decide(limited).chosen
        except NothingFeasible as error:
            reason = error.message.splitlines()[-1].strip(" -")
            points.append(SweepPoint(device_memory_bytes=size, infeasible=reason))
            continue
        points.append(
            SweepPoint(
                device_memory_bytes=size,
                plan=chosen.plan,
                samples_per_s=chosen.samples_per_s,
                time_to_target_s=chosen.time_to_target_s,
                peak_memory_bytes=chosen.peak_memory_bytes,
                bound_by=chosen.bound_by,
            )
        )
    return tuple(points)


def with_sweep(
    config: BatchConfig, decide: Callable[[Cluster], BatchConfig], sizes: Sequence[int]
) -> BatchConfig:
    """Add the sweep to a configuration; as it is without sizes."""
    if not sizes:
        return config
    return config.model_copy(update={"sweep": sweep_memory(decide, config.cluster, sizes)})
