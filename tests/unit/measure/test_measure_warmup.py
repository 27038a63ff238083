"""Warm-up is measured at the chosen configuration, seed by seed."""

import pytest
from asking import Asked

from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.warmup import measure_warmup
from scaler.pipeline import tune
from scaler.records import WarmupRecord
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.workload import Reference


class Opened(Asked):
    """A runtime as `tune` takes it."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def tuned(tiny, cluster, tmp_path):
    """A function (workload fields) that tunes; gives (workload, runtime, run folder, answer)."""

    def run(**fields):
        workload, here = tiny(**fields), cluster()
        runtime = Opened(LocalRuntime(here, workload))
        launch = LaunchConfig(
            workload="tiny", cluster=here, storage_path=str(tmp_path / "RUN"), seeds=2, runtime="local"
        )
        config = tune(launch, workload=workload, runtime=runtime)
        return workload, runtime, RunFolder.open(tmp_path / "RUN"), config.chosen

    return run


def warmups(run):
    return [r for r in run.records() if isinstance(r, WarmupRecord)]


def test_none_and_four_units_are_tried_at_the_answer(tuned):
    _, _, run, answer = tuned(reference=Reference(8, 0.05, warmup_examples=16))
    found = warmups(run)
    assert {r.warmup_examples for r in found} == {0, 64}
    assert {(r.plan.global_batch, r.learning_rate) for r in found} == {
        (answer.plan.global_batch, answer.learning_rate)
    }
    assert "reference" in answer.reasons["warmup"]
    assert "seed" in answer.reasons["warmup"]


def test_nothing_is_asked_twice_nor_without_a_budget(tuned):
    workload, runtime, run, answer = tuned()
    lengths = sorted({r.warmup_examples for r in warmups(run)})
    assert len(lengths) == 2
    assert lengths[1] == 4 * lengths[0]  # without a warm-up of the reference's, from the examples to target
    asked = len(runtime.tasks)
    measure_warmup(Evidence(runtime, run, None), workload, answer)
    assert len(runtime.tasks) == asked
    other = answer.model_copy(update={"learning_rate": 0.123})
    measure_warmup(Evidence(runtime, run, 0.0), workload, other)
    assert len(runtime.tasks) == asked


def test_a_schedule_of_the_workloads_own_leaves_nothing_to_measure(tuned):
    _, _, run, answer = tuned(schedule=lambda examples: 1.0)
    assert warmups(run) == []
    assert "schedule" in answer.reasons["warmup"]
