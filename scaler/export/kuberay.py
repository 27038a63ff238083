"""KubeRay: manifests of a RayJob and of a RayCluster, on which `scaler export --to ray`'s script runs."""

import shlex
import sys
from importlib import metadata
from typing import Any

from scaler.export.job import Job, yaml_text


def ray_job(job: Job) -> dict[str, Any]:
    """Give a RayJob, whose cluster ends with it.

    Raises:
        BadInput: the nodes would get different numbers of workers.
    """
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.plain_name},
        "spec": {
            "entrypoint": f"python {shlex.quote(job.script)}",
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": _cluster_spec(job),
        },
    }


def ray_cluster(job: Job) -> dict[str, Any]:
    """Give a RayCluster that stays. Raises BadInput as `ray_job`."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": job.plain_name},
        "spec": _cluster_spec(job),
    }


def ray_job_text(job: Job) -> str:
    """Write the RayJob. Raises BadInput as `ray_job`."""
    return yaml_text(job.heading(*_notes(job)), ray_job(job))


def ray_cluster_text(job: Job) -> str:
    """Write the RayCluster. Raises BadInput as `ray_job`."""
    return yaml_text(job.heading(*_notes(job)), ray_cluster(job))


def _notes(job: Job) -> list[str]:
    return [
        f"The image needs torch and {job.script}; `scaler export RUN --to ray` writes one that needs scaler.",
        "One CPU for each worker is the least. Set memory as your nodes have it.",
    ]


def _cluster_spec(job: Job) -> dict[str, Any]:
    nodes, workers = job.layout("a KubeRay worker group")
    gpus = {"nvidia.com/gpu": workers} if job.on_gpus else {}
    return {
        "rayVersion": metadata.version("ray"),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},  # workers train on the worker nodes only
            "template": _pod(job, "ray-head", {"cpu": 1}),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": nodes,
                "minReplicas": nodes,
                "maxReplicas": nodes,
                "rayStartParams": {},
                "template": _pod(job, "ray-worker", {"cpu": workers, **gpus}),
            }
        ],
    }


def _pod(job: Job, name: str, resources: dict[str, int]) -> dict[str, Any]:
    return {
        "spec": {
            "containers": [
                {
                    "name": name,
                    "image": job.image or _ray_image(job.on_gpus),
                    "env": [{"name": key, "value": value} for key, value in job.environment().items()],
                    "resources": {"limits": resources, "requests": dict(resources)},
                }
            ]
        }
    }


def _ray_image(on_gpus: bool) -> str:
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return f"rayproject/ray:{metadata.version('ray')}-{python}{'-gpu' if on_gpus else ''}"
