"""The files in launch/ and cluster/ that start a tuning job: each read by what it is for."""

import re
import shlex
import subprocess

from cluster_schemas import ROOT, check_kuberay, check_launcher
from ray.scripts.symmetric_run import symmetric_run

SLURM = (ROOT / "launch" / "slurm.sbatch").read_text(encoding="utf-8")
STUBS = """
scontrol() { echo node-a; echo node-b; }
srun() { printf '%s\\n' "$@"; }
SLURM_JOB_NODELIST=node-[a-b] SLURM_JOB_NUM_NODES=2 SLURM_CPUS_PER_TASK=8 SLURM_GPUS_ON_NODE=4
"""


def test_slurm_starts_ray_on_every_node_and_tunes_on_the_first() -> None:
    assert subprocess.run(["bash", "-n"], input=SLURM, text=True).returncode == 0
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SLURM, re.M))
    assert options["ntasks-per-node"] == "1" and SLURM.index("#SBATCH") < SLURM.index("\nlaunch=")
    command = ["bash", "-s", "launch/digits.yaml", "--resume"]
    ended = subprocess.run(command, input=STUBS + SLURM, capture_output=True, text=True, check=True)
    words = ended.stdout.splitlines()
    assert words[:3] == ["--cpus-per-task=8", "ray", "symmetric-run"]
    end = words.index("--")
    read = symmetric_run.make_context("ray", words[3:end], resilient_parsing=True).params
    assert (read["address"], read["min_nodes"]) == ("node-a:6379", 2)
    assert read["ray_args_and_entrypoint"] == ("--num-cpus=8", "--num-gpus=4")
    assert shlex.join(words[end + 1 :]) == (
        "env RAY_ADDRESS=auto python launch/tune.py --launch launch/digits.yaml --resume"
    )


def test_slurm_without_a_launch_file_says_so() -> None:
    ended = subprocess.run(["bash"], input=STUBS + SLURM, capture_output=True, text=True)
    assert ended.returncode and "give a launch file" in ended.stderr


def test_kuberay_takes_the_job() -> None:
    manifest = check_kuberay((ROOT / "launch" / "ray-job.kuberay.yaml").read_text(encoding="utf-8"))
    words = shlex.split(manifest["spec"]["entrypoint"])
    for path in (words[1], words[3]):
        assert (ROOT / path.removeprefix("/home/ray/app/")).is_file()


def test_rays_launcher_takes_the_cluster() -> None:
    read = check_launcher((ROOT / "cluster" / "ray-launcher.yaml").read_text(encoding="utf-8"))
    assert read["max_workers"] == len(read["provider"]["worker_ips"])
