"""Ray's cluster launcher: the YAML that `ray up FILE` reads, for machines of one's own."""

from importlib import metadata
from typing import Any

from scaler.export.job import Job, yaml_text


def launcher_config(job: Job) -> dict[str, Any]:
    """Give the launcher's configuration, the first node as head and the others as workers.

    Raises:
        BadInput: the nodes would get different numbers of workers.
    """
    nodes, workers = job.layout("Ray's cluster launcher")
    devices = f"--num-cpus={workers}" + (f" --num-gpus={workers}" if job.on_gpus else " --num-gpus=0")
    head = "ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml"
    return {
        "cluster_name": job.plain_name,
        "min_workers": nodes - 1,
        "max_workers": nodes - 1,
        "provider": {
            "type": "local",
            "head_ip": "NODE_0",
            "worker_ips": [f"NODE_{number}" for number in range(1, nodes)],
        },
        "auth": {"ssh_user": "USER"},
        "setup_commands": [f"pip install 'ray[train,default]=={metadata.version('ray')}' torch"],
        "head_start_ray_commands": ["ray stop", f"{head} {devices}"],
        "worker_start_ray_commands": ["ray stop", f"ray start --address=$RAY_HEAD_IP:6379 {devices}"],
        "metadata": job.numbers(),
    }


def launcher_text(job: Job) -> str:
    """Write the YAML file. Raises BadInput as `launcher_config`."""
    notes = ["Put in the addresses of your nodes, and the user that logs in there by ssh."]
    return yaml_text(job.heading(*notes), launcher_config(job))
