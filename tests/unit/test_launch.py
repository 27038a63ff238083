from pathlib import Path

import pytest

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.launch import LaunchConfig
from scaler.schema import parse

ROOT = Path(__file__).parents[2]
CLUSTER = {"workers": [1, 4], "kind": "mock", "device_memory": "64MiB"}


def launch(**fields: object) -> LaunchConfig:
    return parse(LaunchConfig, {"workload": "digits", "cluster": CLUSTER, **fields}, "launch")


def test_a_launch_round_trips_through_yaml(tmp_path: Path) -> None:
    plan = {"global_batch": 96, "micro_batches": [25, 23], "accumulation": 2, "workers": 2}
    before = launch(plan=plan, budget="20m", seeds=5, env={"A": "b"}, address="auto", storage_path="out")
    (tmp_path / "launch.yaml").write_text(before.to_yaml(), encoding="utf-8")
    assert LaunchConfig.load(tmp_path / "launch.yaml") == before
    assert before.budget_s == 1200


@pytest.mark.parametrize(
    ("budget", "budget_s", "written"),
    [
        ("20m", 1200, "1200s"),
        (90, 90, "90s"),
        ("2 device-hours", 1800, "2 device-hours"),  # on the cluster's four workers
        ("5%", None, "5%"),  # of a run that was not timed yet
        (None, None, None),
    ],
)
def test_a_budget_is_time_or_device_hours_or_a_share_of_a_run(
    budget: object, budget_s: float | None, written: str | None, tmp_path: Path
) -> None:
    given = launch(budget=budget)
    assert given.budget_s == budget_s
    assert (given.budget and str(given.budget)) == written
    (tmp_path / "launch.yaml").write_text(given.to_yaml(), encoding="utf-8")
    assert LaunchConfig.load(tmp_path / "launch.yaml") == given


@pytest.mark.parametrize(
    ("stage", "first", "compared"), [(2, 2, 2), ("1", 1, 1), ("auto", 0, None), (0, 0, 0)]
)
def test_a_zero_stage_is_a_number_or_auto(
    stage: object, first: int, compared: int | None, tmp_path: Path
) -> None:
    given = launch(zero_stage=stage)
    assert (given.stage, given.compared_stage) == (first, compared)
    (tmp_path / "launch.yaml").write_text(given.to_yaml(), encoding="utf-8")
    assert LaunchConfig.load(tmp_path / "launch.yaml") == given


def test_what_to_choose_by_and_within_is_part_of_a_launch() -> None:
    given = launch(objective="cost", limits={"time": "2h", "workers": 2})
    assert (given.objective, given.limits.time_s, given.limits.workers) == ("cost", 7200, 2)


def test_a_cluster_may_be_a_path_relative_to_the_launch_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("workers: 2\nkind: cpu\n", encoding="utf-8")
    (tmp_path / "launch").mkdir()
    file = tmp_path / "launch" / "l.yaml"
    file.write_text("workload: digits\ncluster: ../c.yaml\n", encoding="utf-8")
    assert LaunchConfig.load(file).cluster == Cluster(name="c", workers=2, kind="cpu")


def test_python_takes_the_same_fields() -> None:
    cluster = Cluster(workers=2, kind="mock", device_memory_bytes=2**20)
    config = LaunchConfig(workload="digits", cluster=cluster, budget=60, plan=BatchPlan.equal(8, 1, 2))
    assert config.plan is not None and config.plan.global_batch == 16


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"worklod": "x"}, "did you mean 'workload'"),
        ({"budget": "soon"}, "'soon' is not a duration"),
        ({"budget": "-3m"}, "not a duration"),
        ({"budget": "many device-hours"}, "not a budget such as"),
        ({"budget": "150%"}, "less than or equal to 1"),
        ({"objective": "speed"}, "choose one of cost, examples, throughput, time"),
        ({"limits": {"tim": "2h"}}, "limits.tim: unknown key"),
        ({"zero_stage": 4}, "0, 1, 2, 3 or auto"),
        ({"seeds": 0}, "greater than 0"),
        ({"runtime": "slurm"}, "'ray' or 'local'"),
        ({"cluster": {**CLUSTER, "kind": "tpu"}}, "cluster.kind"),
        ({"cluster": "no-such.yaml"}, "no such file"),
        ({"plan": {"micro_batch": 8, "workers": 9}}, "the cluster has 1 to 4 workers"),
        ({"plan": {"micro_batch": 8, "workers": 2, "global_batch": 17}}, "= 16"),
        ({"plan": {"micro_batch": 8, "workers": 2, "zero_stage": 1}}, "zero_stage is 1"),
        ({"plan": {"micro_batch": 8, "workers": 2}, "limits": {"workers": 1}}, "limits allow at most 1"),
        ({"zero_stage": 1, "runtime": "local"}, "DeepSpeed needs worker processes"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput) as raised:
        launch(**fields)
    assert says in raised.value.message
    assert raised.value.exit_code == 2 and raised.value.hint


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(BadInput) as raised:
        launch(budget="soon", seeds=0, zero_stage=9)
    assert "3 faults" in raised.value.message


def test_the_shipped_launch_files_load() -> None:
    files = sorted(set((ROOT / "launch").glob("*.yaml")) - set((ROOT / "launch").glob("*.kuberay.yaml")))
    assert files
    for file in files:
        assert LaunchConfig.load(file).workload


def test_the_shipped_cluster_files_load() -> None:
    files = sorted(set((ROOT / "cluster").rglob("*.yaml")) - {ROOT / "cluster" / "ray-launcher.yaml"})
    assert files
    for file in files:
        assert Cluster.load(file).name == file.stem


def test_the_cluster_readme_describes_every_key() -> None:
    text = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    keys = [field.alias or name for name, field in Cluster.model_fields.items()]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_a_checkpoint_is_relative_to_the_launch_file_and_absolute_in_the_launch(tmp_path: Path) -> None:
    (tmp_path / "launch.yaml").write_text(
        "workload: digits\ncluster: {workers: 1, kind: cpu}\nfrom_checkpoint: states/a.pt\n", encoding="utf-8"
    )
    found = LaunchConfig.load(tmp_path / "launch.yaml")
    assert found.from_checkpoint == str(tmp_path / "states" / "a.pt")
    (tmp_path / "again.yaml").write_text(found.to_yaml(), encoding="utf-8")
    assert LaunchConfig.load(tmp_path / "again.yaml") == found


def test_a_workload_is_looked_for_beside_the_launch_file_then_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    text = "workload: train.py:workload\ncluster: {workers: 1, kind: cpu}\n"
    (tmp_path / "jobs" / "launch.yaml").write_text(text, encoding="utf-8")
    assert LaunchConfig.load("jobs/launch.yaml").workload == "train.py:workload"
    (tmp_path / "jobs" / "train.py").touch()
    assert LaunchConfig.load("jobs/launch.yaml").workload == "jobs/train.py:workload"


def test_branches_and_a_pinned_plan_exclude_each_other() -> None:
    with pytest.raises(BadInput, match="from_checkpoint: branches search for a batch"):
        launch(from_checkpoint="a.pt", plan={"micro_batch": 8, "workers": 2})
