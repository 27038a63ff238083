"""How a model is spread over devices, as far as memory cares."""

from dataclasses import dataclass

LARGEST = 2**20
"""The largest micro-batch that predictions look at."""


@dataclass(frozen=True)
class Shape:
    """Data-parallel ranks, DeepSpeed's ZeRO stage, and whether a step takes several passes."""

    workers: int
    zero_stage: int = 0
    accumulating: bool = False
