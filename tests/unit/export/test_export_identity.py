"""Whatever the equal plan, a tool's numbers multiply back to its global batch, as that tool multiplies."""

import json
import re
import shlex

import pytest
import yaml
from export_cases import cluster_of, job_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser

from scaler.batch import BatchPlan
from scaler.export.job import Job
from scaler.export.ray import scaling_arguments
from scaler.export.targets import TARGETS


@st.composite
def jobs(draw) -> Job:
    nodes, per_node = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    kind = draw(st.sampled_from(["cuda", "cpu"]))
    plan = BatchPlan.equal(draw(st.integers(1, 4096)), draw(st.integers(1, 64)), nodes * per_node)
    return job_of(plan, cluster_of(plan.workers, nodes, kind), learning_rate=draw(st.floats(1e-6, 10)))


def deepspeed(text: str, workers: int) -> int:
    read = json.loads(text)
    product = read["train_micro_batch_size_per_gpu"] * read["gradient_accumulation_steps"] * workers
    assert product == read["train_batch_size"]
    return product


def ray(text: str, workers: int) -> int:
    (plan,) = re.findall(
        r"^PLAN = BatchPlan\(micro_batches=(\(\d+,\) \* \d+), accumulation=(\d+)\)", text, re.M
    )
    size, count = map(int, re.findall(r"\d+", plan[0]))
    assert f"num_workers={count}," in text
    return size * count * int(plan[1])


def accelerate(text: str, workers: int) -> int:
    config = yaml.safe_load(text)
    per_node = config["num_processes"] // config["num_machines"]  # accelerate.utils.launch
    return (
        _batch_size(text)
        * int(_one(r"gradient_accumulation_steps=(\d+)", text))
        * (per_node * config["num_machines"])
    )


def lightning(text: str, workers: int) -> int:
    read = yaml.safe_load(text)
    return _batch_size(text) * read["accumulate_grad_batches"] * read["devices"] * read["num_nodes"]


def hugging_face(text: str, workers: int) -> int:
    read = yaml.safe_load(text)
    return read["per_device_train_batch_size"] * read["gradient_accumulation_steps"] * workers


def torchrun(text: str, workers: int) -> int:
    command = text[text.index("torchrun --nnodes") :].splitlines()[0]
    options = get_args_parser().parse_args(shlex.split(command)[1:])
    return _exported(text) * int(options.nnodes) * int(options.nproc_per_node)


def slurm(text: str, workers: int) -> int:
    read = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
    assert read["ntasks-per-node"] == "1"
    processes = {read["cpus-per-task"], read.get("gpus-per-node", read["cpus-per-task"])}
    assert processes == {_one(r"--nproc-per-node=(\d+)", text)} and f"--nnodes={read['nodes']} " in text
    assert torchrun(text, workers) == _exported(text) * int(read["nodes"]) * int(*processes)
    return torchrun(text, workers)


def kuberay(text: str, workers: int) -> int:
    spec = yaml.safe_load(text)["spec"]
    (group,) = spec.get("rayClusterSpec", spec)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    numbers = {entry["name"]: entry["value"] for entry in container["env"]}
    limits = container["resources"]["limits"]
    assert limits.get("nvidia.com/gpu", limits["cpu"]) == limits["cpu"]
    return _product(numbers) * group["replicas"] * limits["cpu"]


def ray_launcher(text: str, workers: int) -> int:
    read = yaml.safe_load(text)
    nodes = 1 + len(read["provider"]["worker_ips"])
    per_node = {int(n) for n in re.findall(r"--num-cpus=(\d+)", text)}
    return read["metadata"]["micro_batch"] * read["metadata"]["accumulation"] * nodes * int(*per_node)


READERS = {
    "deepspeed": deepspeed,
    "ray": ray,
    "accelerate": accelerate,
    "lightning": lightning,
    "hugging-face": hugging_face,
    "torchrun": torchrun,
    "slurm": slurm,
    "kuberay": kuberay,
    "kuberay-cluster": kuberay,
    "ray-launcher": ray_launcher,
}


@pytest.mark.parametrize("name", TARGETS)
@given(job=jobs())
@settings(max_examples=40, deadline=None)
def test_the_numbers_multiply_back(name: str, job: Job) -> None:
    assert READERS[name](TARGETS[name].text(job), job.plan.workers) == job.plan.global_batch


@given(job=jobs())
@settings(max_examples=40, deadline=None)
def test_the_learning_rate_survives_every_tool_exactly(job: Job) -> None:
    for name, target in TARGETS.items():
        found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", target.text(job))]
        assert job.answer.learning_rate in found, name


@given(job=jobs())
@settings(max_examples=40, deadline=None)
def test_a_worker_takes_one_device(job: Job) -> None:
    assert scaling_arguments(job)["resources_per_worker"].get("GPU", 0) == (job.cluster.kind == "cuda")


def _product(numbers: dict[str, str]) -> int:
    return int(numbers["SCALER_MICRO_BATCH"]) * int(numbers["SCALER_ACCUMULATION"])


def _exported(text: str) -> int:
    return _product(dict(re.findall(r"^export (\w+)=(.*)$", text, re.M)))


def _batch_size(text: str) -> int:
    return int(_one(r"batch_size=(\d+)", text))


def _one(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text)
    return found
