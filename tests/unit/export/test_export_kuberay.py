"""KubeRay's manifests against the operator's published schema, in which nothing unknown may stand."""

import jsonschema
import pytest
from cluster_schemas import check_kuberay
from export_cases import UNEQUAL, cluster_of, job_of

from scaler.batch import BatchPlan
from scaler.export.kuberay import ray_cluster_text, ray_job_text

WIDE = BatchPlan.equal(64, 2, 16, zero_stage=2)
JOBS = {
    "cpu": job_of(UNEQUAL),
    "gpus": job_of(WIDE, cluster_of(16, nodes=2, kind="cuda"), image="mine:1"),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
@pytest.mark.parametrize("text", [ray_job_text, ray_cluster_text])
def test_the_schema_accepts_it(text, job) -> None:
    check_kuberay(text(job))


@pytest.mark.parametrize("key", ["containers", "image", "workerGroupSpecs", "rayClusterSpec", "minReplicas"])
def test_the_schema_is_closed(key: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}x' was unexpected|'{key}' is a required"):
        check_kuberay(ray_job_text(JOBS["cpu"]).replace(f"{key}:", f"{key}x:"))


def test_workers_are_spread_over_pods_as_over_nodes() -> None:
    (group,) = check_kuberay(ray_cluster_text(JOBS["gpus"]))["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
    assert container["resources"]["limits"] == {"cpu": 8, "nvidia.com/gpu": 8}
    assert container["image"] == "mine:1"
    assert {"name": "SCALER_ZERO_STAGE", "value": "2"} in container["env"]


def test_rays_own_image_is_of_the_installed_version() -> None:
    import ray

    assert f"image: rayproject/ray:{ray.__version__}-py3" in ray_job_text(JOBS["cpu"])
    assert "-gpu" in ray_job_text(job_of(BatchPlan.equal(8, 1, 8), cluster_of(8, kind="cuda")))
