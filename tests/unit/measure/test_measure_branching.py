"""When a run to the target does not fit: whether branches are asked, how long, and until when."""

import itertools
import time

import pytest
import torch
from asking import Asked
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.errors import WorkloadError
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.stages import measure
from scaler.probe.branch import BranchRequest
from scaler.probe.convergence import ConvergenceRequest
from scaler.records import BranchRecord, CheckpointRecord, ConvergenceRecord
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.workload import Reference, Target

NEVER = -1.0  # a squared error cannot reach it


def points(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 4, generator=generator)
    return TensorDataset(x, x.sum(dim=1, keepdim=True) + torch.randn(examples, 1, generator=generator))


BUDGET_S = 1000.0


class Ticking:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self._reads = itertools.count()

    def perf_counter(self):
        return float(next(self._reads))


@pytest.fixture(autouse=True)
def few_launches(monkeypatch):
    """Step times are needed, but not known well."""
    monkeypatch.setattr("scaler.measure.throughput.MOST_LAUNCHES", 4)
    monkeypatch.setattr("scaler.measure.stages._SMALLEST_POWER", 10**6)


@pytest.fixture
def slow_trials(monkeypatch):
    """The trials' own clock says that they take hours; nothing else does."""
    monkeypatch.setattr("scaler.probe.convergence.time", Ticking())


class Study:
    """One run folder, and what was asked in it."""

    def __init__(self, workload, cluster, path, **launch):
        path.mkdir(exist_ok=True)
        self.launch = LaunchConfig(
            workload="tiny", cluster=cluster, runtime="local", **({"seeds": 2} | launch)
        )
        self.workload, self.run, self.path = workload, RunFolder(path), path
        self.runtime = Asked(LocalRuntime(cluster, workload))

    def measure(self):
        self.runtime.tasks.clear()
        measure(Evidence(self.runtime, self.run, self.launch.budget_s), self.workload, self.launch, 1)
        return self

    def asked(self, kind):
        return [task.request for task in self.runtime.tasks if isinstance(task.request, kind)]

    def of(self, kind):
        return [record for record in self.run.records() if isinstance(record, kind)]


@pytest.fixture
def study(tiny, cluster, tmp_path):
    """A function (target, folder, workload fields, **launch fields) that starts a study of 2,048 examples."""

    def start(target=None, folder="run", fields=None, **launch):
        usual = {
            "train_data": lambda: points(2048),
            "eval_data": lambda: points(64, 1),
            "target": target or Target(NEVER, "min", max_examples=4_096, evaluate_every=256),
            "reference": Reference(global_batch=8, learning_rate=0.02),
        }
        workload = tiny(**usual | (fields or {}))
        return Study(workload, cluster(), tmp_path / folder, **launch)

    return start


@pytest.fixture
def state(tmp_path):
    """A file with the state of a model that was trained elsewhere."""
    torch.manual_seed(1)
    torch.save({"model": nn.Linear(4, 1).state_dict(), "examples": 640}, tmp_path / "state.pt")
    return str(tmp_path / "state.pt")


def test_a_reference_that_reaches_its_target_is_searched_on(study):
    few = {"train_data": lambda: points(64)}
    here = study(Target(2.0, "min", max_examples=4_096, evaluate_every=64), fields=few, seeds=1).measure()
    assert here.asked(BranchRequest) == []
    first, *others = here.asked(ConvergenceRequest)
    assert (first.plan.global_batch, first.learning_rate, first.seed) == (8, 0.02, 0)
    assert others and first not in others  # the search's first trial is not asked twice


def test_a_reference_that_takes_too_long_is_branched_where_it_stands(study, slow_trials):
    far = Target(NEVER, "min", max_examples=10**9, evaluate_every=10**4)
    here = study(far, budget=BUDGET_S).measure()
    (trial,) = here.of(ConvergenceRecord)
    assert trial.stop == "deadline"
    assert trial.time_limit_s == pytest.approx(0.3 * BUDGET_S)
    branches = here.of(BranchRecord)
    assert {b.start_examples for b in branches} == {trial.examples}
    assert {8, 16} <= {b.plan.global_batch for b in branches}
    assert all(b.seed != trial.seed for b in branches)  # the examples that it saw last come in another order


def test_a_target_that_no_rate_reaches_is_branched_without_a_budget(study):
    here = study().measure()
    assert {t.stop for t in here.of(ConvergenceRecord)} <= {"limit", "diverged"}
    branches = here.of(BranchRecord)
    assert {b.start_examples for b in branches} == {4_096}
    # 32 steps of four times the reference's batch; of 16 times would be as long as a trial may be
    assert {b.examples for b in branches} <= {32 * 4 * 8, 32 * 16 * 8}
    assert {b.plan.global_batch for b in branches} >= {8, 16}


def test_where_a_stretch_would_be_longer_than_a_trial_none_is_asked(study):
    here = study(Target(NEVER, "min", max_examples=512, evaluate_every=64)).measure()
    assert here.asked(BranchRequest) == []


def test_a_pinned_plan_leaves_nothing_to_branch(study):
    here = study(plan=BatchPlan.equal(8, 1, 1)).measure()
    assert here.asked(BranchRequest) == []


def test_a_users_checkpoint_is_branched_always_and_looked_at_first(study, state):
    here = study(Target(2.0, "min"), from_checkpoint=state).measure()
    assert here.asked(ConvergenceRequest) == []
    kinds = [record.kind for record in here.run.records()]
    assert kinds[:2] == ["workload", "checkpoint"]
    branches = here.of(BranchRecord)
    assert branches and {b.start_examples for b in branches} == {640}
    assert not here.run.checkpoint.exists()
    (checkpoint,) = here.of(CheckpointRecord)
    assert checkpoint.optimizer_state  # plain SGD keeps none
    assert {b.rewarm_examples for b in branches} == {0}


def test_without_the_optimizers_state_every_branch_warms_up_again(study, state):
    momentum = {"optimizer": lambda p, rate: torch.optim.SGD(p, lr=rate, momentum=0.9)}
    here = study(from_checkpoint=state, fields=momentum).measure()
    assert {b.rewarm_examples * 8 for b in here.of(BranchRecord)} == {
        b.examples for b in here.of(BranchRecord)
    }


def test_a_checkpoint_of_another_model_ends_the_run_before_memory_is_measured(study, tmp_path):
    torch.save(nn.Linear(5, 1).state_dict(), tmp_path / "other.pt")
    here = study(from_checkpoint=str(tmp_path / "other.pt"))
    with pytest.raises(WorkloadError, match="not of this model"):
        here.measure()
    assert [record.kind for record in here.run.records()] == ["workload"]


def test_data_orders_and_examples_are_shared_and_rates_follow_the_batch(study, state):
    here = study(from_checkpoint=state, seeds=3).measure()
    asked = here.asked(BranchRequest)
    for request in asked:
        growth = request.plan.global_batch / 8
        power = {"linear": 1.0, "square root": 0.5}[request.rate_rule]
        assert request.learning_rate == pytest.approx(0.02 * growth**power, rel=1e-3)
        assert request.examples % (request.points * request.plan.global_batch) == 0
        assert request.examples // 32 >= request.plan.global_batch  # some tens of steps at least
    assert {request.seed for request in asked} == {1, 2, 3}
    of_sgd = [r.rate_rule for r in asked if r.plan.global_batch == 16]
    assert of_sgd[0] == "linear"


def test_other_optimizers_scale_by_the_square_root_first(study, state):
    adam = {"optimizer": lambda p, rate: torch.optim.Adam(p, lr=rate)}
    here = study(from_checkpoint=state, fields=adam).measure()
    assert next(r for r in here.asked(BranchRequest) if r.plan.global_batch == 16).rate_rule == "square root"


def test_branching_ends_with_the_first_batch_that_loses(study, state):
    """At a rate near the largest that is stable, neither rule keeps up for long."""
    fast = study(from_checkpoint=state, seeds=3)
    object.__setattr__(fast.workload, "reference", Reference(global_batch=8, learning_rate=0.3))
    fast.measure()
    sizes = {r.plan.global_batch for r in fast.of(BranchRecord)}
    assert max(sizes) < 8 * 64
    rules = {r.rate_rule for r in fast.of(BranchRecord) if r.plan.global_batch == max(sizes)}
    assert rules == {"linear", "square root"}  # both were given a chance


def test_a_run_that_was_branched_is_resumed_without_a_question(study, slow_trials):
    far = Target(NEVER, "min", max_examples=10**9, evaluate_every=10**4)
    here = study(far, budget=BUDGET_S).measure()
    before = here.run.records()
    here.measure()
    assert here.asked(ConvergenceRequest) == here.asked(BranchRequest) == []
    assert here.run.records() == before


def test_a_longer_budget_trains_the_reference_further(study, slow_trials):
    far = Target(NEVER, "min", max_examples=10**9, evaluate_every=10**4)
    study(far, budget=BUDGET_S / 4).measure()
    longer = study(far, budget=BUDGET_S).measure()
    (asked,) = longer.asked(ConvergenceRequest)
    assert asked.time_limit_s == pytest.approx(0.3 * BUDGET_S)
    starts = [b.start_examples for b in longer.of(BranchRecord)]
    assert starts[-1] > starts[0]


def test_an_interrupted_study_goes_on_from_the_same_state(study, slow_trials):
    far = Target(NEVER, "min", max_examples=10**9, evaluate_every=10**4)
    here = study(far, budget=BUDGET_S).measure()
    whole = [r.task for r in here.of(BranchRecord)]
    lines = here.run.records_file.read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if b'"kind":"branch"' in line) + 2
    here.run.records_file.write_bytes(b"".join(lines[:cut]))
    here.run.checkpoint.unlink()  # the state is trained again
    here.measure()
    assert here.asked(ConvergenceRequest) == []
    assert [r.task for r in here.of(BranchRecord)][:6] == whole[:6]


def test_the_budget_holds_whatever_the_steps_take(study):
    class Slow(nn.Linear):
        def forward(self, x):
            time.sleep(0.002)
            return super().forward(x)

    budget_s, task_s = 3.0, 10.0
    far = Target(NEVER, "min", max_examples=10**9, evaluate_every=10**9)
    here = study(far, fields={"model": lambda: Slow(4, 1)}, budget=budget_s)
    started = time.monotonic()
    here.measure()
    assert time.monotonic() - started < budget_s + task_s
    assert all(t.stop == "deadline" for t in here.of(ConvergenceRecord))
