"""Each export read back by the tool that it is for."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster_schemas import check_launcher
from export_cases import cluster_of, job_of

from scaler.batch import BatchPlan
from scaler.export.accelerate import accelerate_text
from scaler.export.hugging_face import training_text
from scaler.export.lightning import trainer_arguments, trainer_text
from scaler.export.ray_launcher import launcher_text
from scaler.export.slurm import slurm_text
from scaler.export.torchrun import torchrun_text

PLAN = BatchPlan.equal(16, 4, 2)
WIDE = BatchPlan.equal(16, 4, 8)
TWO_NODES = cluster_of(8, nodes=2, kind="cuda")


def accelerate_reads(tmp_path: Path, text: str):
    from accelerate.commands.config.config_args import load_config_from_file

    (tmp_path / "accelerate.yaml").write_text(text, encoding="utf-8")
    return load_config_from_file(str(tmp_path / "accelerate.yaml"))


@pytest.mark.filterwarnings("ignore")
class TestAccelerate:
    def test_gpus_on_two_nodes(self, tmp_path: Path) -> None:
        read = accelerate_reads(tmp_path, accelerate_text(job_of(WIDE, TWO_NODES)))
        assert (read.num_processes, read.num_machines, read.use_cpu) == (8, 2, False)
        assert read.distributed_type == "MULTI_GPU" and read.main_process_ip == "MAIN_NODE"

    def test_a_stage_is_deepspeeds(self, tmp_path: Path) -> None:
        plan = WIDE.model_copy(update={"zero_stage": 2})
        read = accelerate_reads(tmp_path, accelerate_text(job_of(plan, TWO_NODES)))
        assert read.distributed_type == "DEEPSPEED"
        assert (
            read.deepspeed_config["zero_stage"],
            read.deepspeed_config["gradient_accumulation_steps"],
        ) == (2, 4)

    @pytest.mark.parametrize(("workers", "kind"), [(1, "NO"), (2, "MULTI_CPU")])
    def test_its_launcher_takes_it(self, tmp_path: Path, workers: int, kind: str) -> None:
        """A launcher that started one process for two would halve the batch without a word."""
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser

        read = accelerate_reads(tmp_path, accelerate_text(job_of(BatchPlan.equal(16, 4, workers))))
        assert read.distributed_type == kind and read.use_cpu
        file = str(tmp_path / "accelerate.yaml")
        options, _, _ = _validate_launch_command(
            launch_command_parser().parse_args(["--config_file", file, "t.py"])
        )
        assert options.num_processes == workers and not options.multi_gpu
        assert options.mpirun_hostfile == ("hostfile" if workers > 1 else None)


@pytest.mark.filterwarnings("ignore")
class TestLightning:
    @pytest.mark.parametrize("plan", [PLAN, BatchPlan.equal(16, 4, 1)])
    def test_its_trainer_takes_them(self, plan: BatchPlan, tmp_path: Path) -> None:
        from lightning.pytorch import Trainer

        read = yaml.safe_load(trainer_text(job_of(plan)))
        trainer = Trainer(**read, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
        assert trainer.world_size == plan.workers
        assert trainer.accumulate_grad_batches == 4
        assert not trainer.gradient_clip_val

    def test_its_trainer_takes_nodes(self, tmp_path: Path) -> None:
        from lightning.pytorch import Trainer

        read = trainer_arguments(job_of(WIDE, cluster_of(8, nodes=2)))
        trainer = Trainer(**read, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
        assert (trainer.num_nodes, trainer.num_devices, trainer.world_size) == (2, 4, 8)

    def test_a_stage_is_a_strategy_that_it_knows(self) -> None:
        from lightning.pytorch.strategies import StrategyRegistry

        plan = WIDE.model_copy(update={"zero_stage": 3})
        arguments = trainer_arguments(job_of(plan, TWO_NODES))
        assert arguments["strategy"] in StrategyRegistry.available_strategies()
        assert StrategyRegistry[arguments["strategy"]]["init_params"]["stage"] == 3


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_takes_its_arguments(tmp_path: Path) -> None:
    from transformers import HfArgumentParser, TrainingArguments

    text = training_text(job_of(PLAN, learning_rate=0.03, warmup_steps=7))
    (tmp_path / "arguments.yaml").write_text(text, encoding="utf-8")
    (parsed,) = HfArgumentParser(TrainingArguments).parse_yaml_file(str(tmp_path / "arguments.yaml"))
    for read in (parsed, TrainingArguments(**yaml.safe_load(text))):
        assert read.train_batch_size * read.gradient_accumulation_steps * 2 == PLAN.global_batch
        assert (read.learning_rate, read.get_warmup_steps(1000), read.max_grad_norm) == (0.03, 7, 0)
        assert read.lr_scheduler_type == "constant_with_warmup" and read.use_cpu


SCRIPT = """
import os, sys
import torch.distributed as dist
dist.init_process_group(os.environ["SCALER_BACKEND"])
batch = int(os.environ["SCALER_MICRO_BATCH"]) * int(os.environ["SCALER_ACCUMULATION"]) * dist.get_world_size()
assert batch == int(os.environ["SCALER_GLOBAL_BATCH"]) and sys.argv[1:] == ["--epochs", "3"]
if dist.get_rank() == 0:
    print("global batch", batch)
dist.destroy_process_group()
"""


@pytest.mark.integration
def test_the_torchrun_script_runs(tmp_path: Path) -> None:
    (tmp_path / "my train.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "run.sh").write_text(torchrun_text(job_of(PLAN, script="my train.py")), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["sh", "run.sh", "--epochs", "3"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.strip() == f"global batch {PLAN.global_batch}"


def test_several_nodes_need_the_first_ones_address(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(torchrun_text(job_of(WIDE, TWO_NODES)), encoding="utf-8")
    ended = subprocess.run(["sh", "run.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode and "give the address of the first node" in ended.stderr


STUBS = """
scontrol() { echo node-a; echo node-b; }
srun() { printf '%s\\n' "$@"; }
SLURM_JOB_ID=17 SLURM_JOB_NODELIST=node-[a-b] SLURM_CPUS_PER_TASK=4
"""


@pytest.mark.parametrize(
    "job", [job_of(WIDE, TWO_NODES), job_of(PLAN), job_of(BatchPlan(micro_batches=(3, 2)))]
)
def test_bash_reads_the_slurm_script(job) -> None:
    ended = subprocess.run(["bash", "-n"], input=slurm_text(job), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_slurm_starts_torchrun_once_on_every_node() -> None:
    text = slurm_text(job_of(WIDE, TWO_NODES, script="my train.py"))
    assert "#SBATCH --gpus-per-node=4\n" in text and "#SBATCH --nodes=2\n" in text
    assert text.startswith("#!/bin/bash\n#SBATCH"), "sbatch reads its lines only before the first command"
    ended = subprocess.run(["bash"], input=STUBS + text, capture_output=True, text=True, check=True)
    words = ended.stdout.splitlines()
    assert words[:2] == ["--cpus-per-task=4", "torchrun"] and words[-1] == "my train.py"
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=17", "--rdzv-endpoint=node-a:29500"} <= {*words}


@pytest.mark.parametrize(("job", "others"), [(job_of(WIDE, TWO_NODES), 1), (job_of(PLAN), 0)])
def test_rays_launcher_takes_its_file(job, others: int) -> None:
    read = check_launcher(launcher_text(job))
    assert read["max_workers"] == others == len(read["provider"]["worker_ips"])
    (node,) = read["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == others
    for command in (read["head_start_ray_commands"][-1], read["worker_start_ray_commands"][-1]):
        assert "--num-gpus=4" in shlex.split(command) or not job.on_gpus
