"""`scaler plan` in a terminal: what fits, the itemised bill, and the formula with the numbers put in."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from scaler.cluster import Cluster
from scaler.plan import Bill, Itemised, Plan, Plans
from scaler.report.terminal import heading, make_console, new_table, plain
from scaler.report.wording import counted
from scaler.trace.shape import LARGEST
from scaler.units import format_bytes, format_count

_NAMES = {
    "parameters": "parameters and buffers of the model",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "activations": "activations, kept for the backward pass",
    "temporaries": "temporaries",
    "buffers": "buckets of DDP or ZeRO",
    "rounding": "allocator rounding and fragmentation",
    "workspaces": "library workspaces",
    "context": "CUDA context",
    "communicator": "communicator",
}
_HOST_NAMES = {
    "process": "process and libraries",
    "data_set": "data set",
    "data_loading": "batches of a step",
    "pinned_buffers": "pinned copy of a batch on its way",
    "model": "model, as it is built",
    "optimizer_offload": "offloaded optimizer state",
}


def print_plans(plans: Plans, console: Console | None = None) -> None:
    """Print what fits, and the bill of the plan that allows the largest micro-batch."""
    (console or make_console()).print(plans_text(plans))


def plans_text(plans: Plans) -> RenderableType:
    """Give the whole answer as one renderable."""
    parts: list[RenderableType] = [plain(_sentence(plans), "bold"), Text()]
    if plans.plans:
        parts.append(_overview(plans.plans))
        shown: Itemised = max(plans.plans, key=lambda p: (p.max_micro_batch, -p.zero_stage, -p.workers))
        micro_batch = max(1, max(plan.max_micro_batch for plan in plans.plans))
    else:
        parts.append(_asked(plans.at))
        shown = plans.at[0]
        micro_batch = plans.at[0].micro_batch
    parts += [
        heading(f"Where the memory goes: {_spread(shown)}, micro-batch {format_count(micro_batch)}"),
        _items(shown.items, _NAMES, shown.peak_bytes),
        plain(formula(shown.peak_bytes, plans.cluster)),
        heading("Host memory of each worker process"),
        _items(shown.host_items, _HOST_NAMES, shown.host_bytes),
        plain(_which(shown, plans.cluster)),
    ]
    parts += [plain(f"note: {note}") for note in plans.notes]
    return Group(*parts)


def formula(peak_bytes: int, cluster: Cluster) -> str:
    """Write the rule that decides what fits, with the numbers put in and the margin's reason."""
    capacity_bytes = cluster.capacity_bytes() or 0
    needed_bytes = cluster.needed_bytes(peak_bytes)
    sign = "<=" if needed_bytes <= capacity_bytes else ">"
    return (
        f"{format_bytes(peak_bytes)} peak x {1 + cluster.margin:g} margin "
        f"+ {format_bytes(cluster.reserve_bytes)} reserve = {format_bytes(needed_bytes)} {sign} "
        f"{format_bytes(capacity_bytes)} of the device.\n"
        f"The margin is for what a prediction cannot see: unusual batches, other algorithms of a library, "
        f"fragmentation over a long run. It costs {format_bytes(peak_bytes * cluster.margin)} here."
    )


def _sentence(plans: Plans) -> str:
    device = plans.cluster.device or f"{plans.cluster.kind} device"
    memory = format_bytes(plans.cluster.capacity_bytes() or 0)
    return f"{plans.workload} on {plans.cluster.name}: memory of one {device} with {memory}"


def _overview(plans: tuple[Plan, ...]) -> RenderableType:
    found = new_table("workers", "ZeRO", "largest micro-batch", "peak there", "set by", "host", "confidence")
    for plan in plans:
        largest = format_count(plan.max_micro_batch) if plan.max_micro_batch else "none: 1 is too large"
        largest += " or more" if plan.max_micro_batch == LARGEST else ""
        cells = (format_bytes(plan.peak_bytes), plan.regime, format_bytes(plan.host_bytes), plan.confidence)
        found.add_row(*map(plain, (str(plan.workers), str(plan.zero_stage), largest, *cells)))
    return found


def _asked(bills: tuple[Bill, ...]) -> RenderableType:
    found = new_table("workers", "ZeRO", "micro-batch", "allocated", "reserved", "peak", "set by", "fits")
    for bill in bills:
        sizes = (bill.allocated_bytes, bill.reserved_bytes, bill.peak_bytes)
        cells = (*map(format_bytes, sizes), bill.regime, "yes" if bill.fits else "no")
        found.add_row(
            *map(plain, (str(bill.workers), str(bill.zero_stage), format_count(bill.micro_batch), *cells))
        )
    return found


def _items(items: Mapping[Any, int], names: dict[str, str], total_bytes: int) -> RenderableType:
    found = new_table("item", "bytes", "share")
    for item, size_bytes in sorted(items.items(), key=lambda pair: -pair[1]):
        if size_bytes:
            share = f"{size_bytes / total_bytes:.0%}"
            found.add_row(*map(plain, (names[item], format_bytes(size_bytes), share)))
    found.add_row(*map(plain, ("together", format_bytes(total_bytes), "100%")))
    return found


def _which(shown: Itemised, cluster: Cluster) -> str:
    workers = -(-cluster.max_workers // cluster.nodes)
    needed_bytes = workers * shown.host_bytes
    text = (
        "Which memory counts? The device's bounds the micro-batch; the host's must hold every worker process "
        f"of a node: {workers} x {format_bytes(shown.host_bytes)} = {format_bytes(needed_bytes)}"
    )
    if cluster.host_memory_bytes is None:
        return text + "."
    verdict = "enough" if needed_bytes <= cluster.host_memory_bytes else "too little"
    return f"{text}, and it has {format_bytes(cluster.host_memory_bytes)}: {verdict}."


def _spread(shown: Itemised) -> str:
    return f"{counted(shown.workers, 'worker')}, ZeRO stage {shown.zero_stage}"
