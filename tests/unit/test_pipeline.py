"""The whole flow, on a recorded run and in this process: no Ray."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset

from scaler import BatchPlan, Cluster, LaunchConfig, Reference, Target, Workload, recommend, tune
from scaler.answers import report
from scaler.decide.config import BatchConfig
from scaler.errors import BadInput, Interrupted, NothingFeasible, WorkloadError
from scaler.records import ConvergenceRecord, MemoryRecord, Prediction, PredictionRecord
from scaler.runs import RunFolder
from scaler.runtime.replay import ReplayRuntime
from scaler.trace.ask import ask_prediction

RECORDED = Path(__file__).parents[1] / "recorded" / "digits-mock-2"
ONE = Cluster(name="one", workers=1, kind="mock", device_memory_bytes=2**20)


def points(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


def error(net: nn.Module, batch: Any) -> torch.Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


def plane(**fields: Any) -> Workload:
    base: dict[str, Any] = {
        "name": "plane",
        "model": lambda: nn.Linear(4, 1),
        "train_data": lambda: points(256, 0),
        "eval_data": lambda: points(64, 1),
        "loss": error,
        "optimizer": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        "metric": error,
        "target": Target(0.05, "min", max_examples=20_000),
        "reference": Reference(global_batch=32, learning_rate=0.1),
    }
    return Workload(**{**base, **fields})


def local(path: Path, **fields: Any) -> LaunchConfig:
    base: dict[str, Any] = {"workload": "plane", "cluster": ONE, "storage_path": str(path), "seeds": 2}
    return LaunchConfig(**{**base, "runtime": "local", **fields})


ASK = "scaler.probe.prediction.ask_prediction"


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes seconds: only the tests of the whole flow do it."""
    nothing = Prediction(curves=(), confidence="low", notes=("not traced",))
    monkeypatch.setattr(ASK, lambda *_, **__: nothing)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDED, tmp_path / "RUN"))


def test_a_recorded_run_is_replayed_to_the_same_answer(recorded: Path, tmp_path: Path) -> None:
    records = RunFolder.open(recorded).records()
    launch = LaunchConfig.load(recorded / "launch.yaml").model_copy(
        update={"storage_path": str(tmp_path / "again")}
    )
    config = tune(launch, runtime=ReplayRuntime(records, workers=2))
    assert config == recommend(recorded)
    again = RunFolder.open(tmp_path / "again").records()
    assert sorted(again, key=lambda r: r.task) == sorted(records, key=lambda r: r.task)


def test_digits_full_batch_is_judged_whether_the_search_tried_it_or_not(recorded: Path) -> None:
    records = RunFolder.open(recorded).records()
    batches = {r.plan.global_batch for r in records if type(r) is ConvergenceRecord}
    assert len(batches) >= 4
    rules = recommend(recorded).rules_of_thumb
    (full,) = [rule for rule in rules if rule.global_batch == 1437 and "full batch" in rule.rule]
    assert full.time_ratio is not None and full.time_ratio > 1.05 and not full.agrees
    assert (1437 in batches) or "was not tried" in full.verdict


def test_every_worker_count_has_an_answer_with_reasons(recorded: Path) -> None:
    config = recommend(recorded)
    assert [a.plan.workers for a in config.answers] == [1, 2]
    for answer in config.answers:
        assert answer.time_to_target_s is not None and answer.time_to_target_s.is_identified
        assert answer.peak_memory_bytes is not None
        assert {"global_batch", "micro_batch", "learning_rate", "warmup"} <= set(answer.reasons)


def test_what_a_device_of_less_memory_changes(recorded: Path) -> None:
    cluster = Cluster(name="small", workers=(1, 2), kind="mock", device_memory_bytes=400 * 2**10)
    for answer in recommend(recorded, cluster).answers:
        assert answer.peak_memory_bytes is not None
        assert cluster.fits(answer.peak_memory_bytes.value, 400 * 2**10)


def test_recommend_refuses_devices_of_another_kind(recorded: Path) -> None:
    with pytest.raises(BadInput, match="step times do not carry over"):
        recommend(recorded, Cluster(name="other", workers=1, kind="cuda"))


def test_report_writes_the_page_again(recorded: Path) -> None:
    page = report(recorded)
    assert page == recorded / "report.html" and "digits" in page.read_text(encoding="utf-8")
    assert BatchConfig.model_validate(yaml.safe_load((recorded / "batch-config.yaml").read_text()))


@pytest.mark.parametrize("traced", [True, False])
def test_tune_in_process_from_question_to_confirmation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    if traced:
        monkeypatch.setattr(ASK, ask_prediction)
    config = tune(local(tmp_path / "RUN"), workload=plane())
    records = RunFolder.open(tmp_path / "RUN").records()
    (predicted,) = [r for r in records if isinstance(r, PredictionRecord)]
    probes = [
        r for r in records if isinstance(r, MemoryRecord) and r.plan.accumulation == 1 and not r.held_out
    ]
    assert bool(predicted.prediction.curves) is traced
    assert len(probes) == 1 if traced else len(probes) > 3  # all of it fits: one look, or the whole climb
    assert config.confirmation is not None and config.confirmation.reached
    assert {c.quantity for c in config.confirmation.comparisons} == {
        "step_time_s",
        "examples_to_target",
        "time_to_target_s",
        "peak_memory_bytes",
    }
    assert {p.name for p in (tmp_path / "RUN").iterdir()} == {
        "launch.yaml",
        "records.jsonl",
        "batch-config.yaml",
        "report.html",
    }


def test_resuming_a_complete_run_asks_nothing(tmp_path: Path) -> None:
    launch = local(tmp_path / "RUN")
    config = tune(launch, workload=plane())
    before = RunFolder.open(tmp_path / "RUN").records()
    assert tune(launch, workload=plane(), runtime=ReplayRuntime([], 1), resume=True) == config
    assert RunFolder.open(tmp_path / "RUN").records() == before


class Ticking:
    """A clock that goes on by a millisecond whenever it is read, so that runs measure the same times."""

    def __init__(self) -> None:
        self._reads = itertools.count()

    def perf_counter(self) -> float:
        return next(self._reads) / 1e3


def test_a_cut_run_resumes_to_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for measuring in ("engine.clock", "probe.throughput", "probe.powers"):
        monkeypatch.setattr(f"scaler.{measuring}.time", Ticking())
    launch = local(tmp_path / "RUN")
    tune(launch, workload=plane())
    run = RunFolder.open(tmp_path / "RUN")
    whole = run.records()
    text = run.records_file.read_bytes()
    run.records_file.write_bytes(text[: len(text) // 2])
    tune(launch, workload=plane(), resume=True)
    again = run.records()
    asked = [r.task for r in whole if not r.held_out]
    assert [r.task for r in again if not r.held_out] == asked


def test_resuming_with_another_question_is_refused(tmp_path: Path) -> None:
    tune(local(tmp_path / "RUN"), workload=plane())
    with pytest.raises(BadInput, match="made with another seeds"):
        tune(local(tmp_path / "RUN", seeds=3), workload=plane(), resume=True)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    launch = local(tmp_path / "RUN")
    tune(launch, workload=plane())
    with pytest.raises(BadInput, match="not empty") as raised:
        tune(launch, workload=plane())
    assert "--resume" in raised.value.hint and "--force" in raised.value.hint


def test_a_pinned_plan_is_the_only_one_measured(tmp_path: Path) -> None:
    plan = BatchPlan.equal(16, 2, 1)
    config = tune(local(tmp_path / "RUN", plan=plan), workload=plane())
    assert config.chosen.plan == plan and config.chosen.bound_by == "pinned plan"
    trials = [r for r in RunFolder.open(tmp_path / "RUN").records() if isinstance(r, ConvergenceRecord)]
    assert {r.plan.global_batch for r in trials} == {32}


def test_a_target_out_of_reach_keeps_the_reference_and_promises_no_time(tmp_path: Path) -> None:
    far = plane(target=Target(-1.0, "min", max_examples=512))
    config = tune(local(tmp_path / "RUN"), workload=far)
    assert config.chosen.plan.global_batch == 32
    assert config.chosen.time_to_target_s is None and config.confirmation is None
    assert "time_to_target_s" not in config.to_dict()["answers"][0]


def test_a_budget_that_ends_before_the_trials_still_gives_an_answer(tmp_path: Path) -> None:
    class Slow(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            import time

            time.sleep(0.001)
            return super().forward(x)

    slow = plane(model=lambda: Slow(4, 1), target=Target(-1.0, "min", max_examples=10**9))
    config = tune(local(tmp_path / "RUN", budget="3s"), workload=slow)
    assert config.chosen.plan.global_batch == 32
    assert config.chosen.time_to_target_s is None


@pytest.mark.parametrize("traced", [True, False])
def test_a_model_that_does_not_fit_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    if traced:
        monkeypatch.setattr(ASK, ask_prediction)
    tiny = Cluster(name="tiny", workers=1, kind="mock", device_memory_bytes=1024)
    with pytest.raises(NothingFeasible, match="micro-batch 1") as raised:
        tune(local(tmp_path / "RUN", cluster=tiny), workload=plane())
    assert raised.value.exit_code == 3
    assert ("KiB  parameters" in raised.value.message) is traced  # the bill of what was predicted


def raises(*_: Any) -> Any:
    raise ValueError("no such column")


@pytest.mark.parametrize("function", ["model", "train_data", "eval_data", "loss", "optimizer", "metric"])
def test_a_function_that_raises_is_named_and_nothing_is_lost(tmp_path: Path, function: str) -> None:
    with pytest.raises(WorkloadError, match=rf"{function}\(\) raised ValueError: no such column") as raised:
        tune(local(tmp_path / "RUN"), workload=plane(**{function: raises}))
    assert raised.value.exit_code == 2 and "test_pipeline.py" in raised.value.message
    assert RunFolder.open(tmp_path / "RUN").launch.is_file()


def test_data_smaller_than_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has 20 examples, fewer than one global batch of 32"):
        tune(local(tmp_path / "RUN"), workload=plane(train_data=lambda: points(20, 0)))


@pytest.mark.parametrize(("after", "says"), [(2, "too few for an answer"), (30, "so far is in")])
def test_an_interruption_keeps_what_was_measured(tmp_path: Path, after: int, says: str) -> None:
    def stop_after(records: int) -> Callable[[str, int, int], None]:
        count = 0

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal count
            count += 1
            if count > records:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(Interrupted, match=says) as raised:
        tune(local(tmp_path / "RUN"), workload=plane(), progress=stop_after(after))
    assert raised.value.exit_code == 4
    assert RunFolder.open(tmp_path / "RUN").records()
