"""A run held against a plan, whatever library trains."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from scaler.answers import report
from scaler.batch import BatchPlan
from scaler.callbacks import watch
from scaler.callbacks.watch import PlanWatch, Use, base_rate
from scaler.decide.config import BatchConfig
from scaler.errors import BadInput
from scaler.fit.noise import NoiseFit
from scaler.stats import Estimate

RECORDED = Path(__file__).parents[2] / "recorded" / "digits-mock-2"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "RUN"
    shutil.copytree(RECORDED, folder)
    report(folder)
    return BatchConfig.load(folder)


def uses(plan, learning_rate=0.1, **other):
    found = {
        "micro_batch": Use("batch_size", plan.micro_batch),
        "accumulation": Use("passes", plan.accumulation),
        "workers": Use("ranks", plan.workers),
        "zero_stage": Use("stage", plan.zero_stage),
        "learning_rate": Use("lr", learning_rate),
    }
    return found | {name: Use(found[name].setting, value) for name, value in other.items()}


def test_a_run_that_uses_the_plan_passes(config):
    answer = config.chosen
    PlanWatch(config).check("Library", uses(answer.plan, answer.learning_rate))
    PlanWatch(config).check("Library", uses(answer.plan, round(answer.learning_rate, 4)))  # as it is printed
    PlanWatch(answer.plan).check("Library", uses(answer.plan, 123.0))  # a plan says nothing of the rate


def test_every_field_that_differs_is_named_with_both_values(config):
    answer = config.chosen
    with pytest.raises(BadInput) as raised:
        PlanWatch(config).check(
            "Library",
            uses(answer.plan, 7.5, micro_batch=3, accumulation=5, workers=6, zero_stage=2),
        )
    for name, setting, planned, found in (
        ("micro_batch", "batch_size", answer.plan.micro_batch, 3),
        ("accumulation", "passes", answer.plan.accumulation, 5),
        ("workers", "ranks", answer.plan.workers, 6),
        ("zero_stage", "stage", answer.plan.zero_stage, 2),
        ("learning_rate", "lr", answer.learning_rate, 7.5),
    ):
        assert f"{name}: the plan has {planned:g}, {setting} is {found}" in raised.value.message


def test_not_strict_only_warns(config):
    answer = config.chosen
    with pytest.warns(UserWarning, match="micro_batch: the plan has"):
        PlanWatch(config, strict=False).check(
            "Library", uses(answer.plan, answer.learning_rate, micro_batch=3)
        )


def test_unequal_entries_cannot_be_used(config):
    plan = BatchPlan(micro_batches=(719, 718))
    with pytest.raises(BadInput, match="micro_batches: the plan has 719, 718") as raised:
        PlanWatch(plan).check("Library", uses(plan))
    assert "micro_batch:" not in raised.value.message and "scaler.apply" in raised.value.hint


def test_the_answer_for_a_worker_count(config):
    assert PlanWatch(config, workers=2).plan == config.answer_for(2).plan


def test_throughput_is_told_beside_the_prediction(config, monkeypatch):
    times = iter([*range(9), 1000.0])  # a pause of evaluation at the end
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(times))
    found = PlanWatch(config)
    for _ in range(8):
        found.step_done()
    assert found.throughput() == {}
    found.step_done()
    found.step_done()
    predicted = config.chosen.samples_per_s
    assert found.throughput() == {
        "samples_per_s": config.chosen.plan.global_batch,
        "predicted_samples_per_s": predicted.value,
        "predicted_samples_per_s_low": predicted.low,
        "predicted_samples_per_s_high": predicted.high,
    }


def noise(low, high):
    value = (low * high) ** 0.5
    return NoiseFit(scale=Estimate(value=value, low=low, high=high, samples=64, method="made up"))


def findings(config, **fields):
    made = {name: None if bounds is None else noise(*bounds).scale for name, bounds in fields.items()}
    return config.model_copy(update={"findings": config.findings.model_copy(update=made)})


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ((30, 60), None),
        ((399, 900), None),  # not wholly beyond 4 x 100
        ((401, 900), "a larger batch would now lose little"),
        ((4, 4.9), "a smaller batch would now reach as much"),
        ((4, 5.1), None),
    ],
)
def test_the_batch_should_change_when_the_noise_scale_is_wholly_elsewhere(config, now, says):
    found = PlanWatch(findings(config, noise_scale=(20, 80), critical_batch=(50, 100)))
    if says is None:
        found.judge(noise(*now))
        return
    with pytest.warns(UserWarning, match=says) as caught:
        found.judge(noise(*now))
    assert "(90% interval 20 to 80)" in str(caught[0].message) and "--from-checkpoint" in str(
        caught[0].message
    )
    found.judge(noise(*now))  # once is enough


def test_without_evidence_nothing_is_judged(config):
    far = noise(1e6, 2e6)
    PlanWatch(findings(config, noise_scale=None, critical_batch=None)).judge(far)
    PlanWatch(config.chosen).judge(far)
    PlanWatch(findings(config, noise_scale=(20, 80), critical_batch=None)).judge(NoiseFit())


def test_the_base_rate_is_without_the_warm_up():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    assert base_rate(optimizer) == 0.5
    with warnings.catch_warnings(action="ignore"):
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    assert optimizer.param_groups[0]["lr"] == 0 and base_rate(optimizer) == 0.5
