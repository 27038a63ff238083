"""What every record says of how it was taken."""

from typing import Any

from scaler.records import environment, now
from scaler.runtime.protocol import Probe, Rank, Task


def observation(probe: Probe, rank: Rank, request: Any) -> dict[str, Any]:
    """Give the fields that every record shares: the question, its seed, the time and the environment."""
    return {
        "task": Task(probe, request, rank.world_size).key,
        "seed": request.seed,
        "taken_at": now(),
        "environment": environment(rank.device.name, rank.world_size, rank.nodes),
    }
