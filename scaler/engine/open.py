"""Which engine a plan takes."""

import torch

from scaler.batch import BatchPlan
from scaler.engine.engine import Engine
from scaler.engine.torch_engine import TorchEngine
from scaler.engine.zero import ZeroEngine
from scaler.errors import BadInput
from scaler.runtime.protocol import Rank
from scaler.workload import Workload


def open_engine(workload: Workload, plan: BatchPlan, rank: Rank, learning_rate: float, seed: int) -> Engine:
    """Open the engine the plan takes: DeepSpeed for a ZeRO stage, DDP for several ranks, else torch.

    Raises:
        BadInput: the plan is for another number of workers, or DeepSpeed is not installed.
    """
    if plan.workers != rank.world_size:
        raise BadInput(
            f"the plan {plan.arithmetic()} ran on {rank.world_size} ranks", hint="ask for plan.workers ranks"
        )
    if plan.zero_stage:
        engine: Engine = ZeroEngine(workload, plan, rank, learning_rate, seed)
    else:
        engine = TorchEngine(workload, plan, rank, learning_rate, seed)
    torch.manual_seed(seed + rank.rank)  # the same network everywhere, but dropout of its own
    return engine
