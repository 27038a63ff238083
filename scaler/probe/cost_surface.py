"""The cost of given weights, and of a grid of them."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from scaler.engine.data import evaluation_batches
from scaler.engine.engine import average, build_module
from scaler.probe.trajectories import Floats, Plane
from scaler.records import Contour
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

_MARGIN = 0.15  # of the paths' extent, around them


class CostSurface:
    """The mean loss of the first examples of the data, as a function of the weights.

    Dropout is off. BatchNorm takes the statistics of the batch: those it gathered belong to other weights.
    """

    def __init__(self, rank: Rank, workload: Workload, seed: int) -> None:
        self._rank, self._workload = rank, workload
        self._module = build_module(workload, rank, seed)
        for child in self._module.modules():
            if isinstance(child, _BatchNorm):
                child.running_mean = child.running_var = None
        self._batches: list[Any] = []
        self._pass = 1

    def take(self, data: Any, examples: int, largest_pass: int) -> int:
        """Use up to `examples` of the data, in passes of one size; returns how many."""
        passes = -(-examples // largest_pass)
        self._pass = examples // passes
        self._batches = []
        for batch in evaluation_batches(self._workload, data, self._pass):
            self._batches.append(batch)
            if len(self._batches) == passes:
                break
        return passes * self._pass

    def cost(self, weights: NDArray[np.float32]) -> float:
        """Compute the cost at flat weights, float32 [parameters]; nan where it is not finite."""
        vector = torch.tensor(weights, device=self._rank.device.torch_device)
        vector_to_parameters(vector, self._module.parameters())
        return average(self._workload, "loss", self._module, self._batches, self._rank, self._pass)

    def contour(self, plane: Plane, paths: Floats, side: int) -> Contour | None:
        """Compute the cost on `side` x `side` points of the plane around `paths`, [rows, 2].

        None where the paths have no extent in one direction.
        """
        low, high = paths.min(axis=0), paths.max(axis=0)
        air = (high - low) * _MARGIN
        if not (air > 0).all():
            return None
        x, y = (np.linspace(low[k] - air[k], high[k] + air[k], side).tolist() for k in (0, 1))
        return Contour(x=tuple(x), y=tuple(y), cost=tuple(tuple(self._at(plane, c, r) for c in x) for r in y))

    def _at(self, plane: Plane, x: float, y: float) -> float | None:
        cost = self.cost(plane.weights(x, y))
        return cost if math.isfinite(cost) else None
