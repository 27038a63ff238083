"""scaler measures which batch configuration to train with: on your model, your data and your cluster.

    from scaler import Workload, Cluster, BatchPlan, LaunchConfig, tune, recommend

Names are imported when they are first used, so that `import scaler` needs neither torch nor Ray.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaler.answers import recommend
    from scaler.applied import apply
    from scaler.batch import BatchPlan
    from scaler.cluster import Cluster
    from scaler.errors import ScalerError
    from scaler.launch import LaunchConfig
    from scaler.noise_scale import NoiseScale
    from scaler.pipeline import tune
    from scaler.workload import Reference, Target, Workload

__all__ = [
    "BatchPlan",
    "Cluster",
    "LaunchConfig",
    "NoiseScale",
    "Reference",
    "ScalerError",
    "Target",
    "Workload",
    "apply",
    "recommend",
    "tune",
]

_HOMES = {
    "BatchPlan": "batch",
    "Cluster": "cluster",
    "LaunchConfig": "launch",
    "NoiseScale": "noise_scale",
    "Reference": "workload",
    "ScalerError": "errors",
    "Target": "workload",
    "Workload": "workload",
    "apply": "applied",
    "recommend": "answers",
    "tune": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("scaler")
    if name not in _HOMES:
        raise AttributeError(f"module 'scaler' has no attribute {name!r}")
    return getattr(import_module(f"scaler.{_HOMES[name]}"), name)
