"""batch-config.yaml: what is written, and that it comes back."""

import pytest
import yaml
from decide_records import Study, cluster_of, confirmation

from scaler.batch import BatchPlan
from scaler.decide.config import BatchConfig
from scaler.decide.confirm import with_confirmation
from scaler.decide.decide import decide

STUDY = Study()
OPTIONAL = {"examples_to_target", "steps_to_target", "time_to_target_s", "cost_to_target"}


def confirmed() -> BatchConfig:
    records = STUDY.records()
    config = decide(records, cluster_of())
    answer = config.chosen
    run = confirmation(answer.plan, answer.learning_rate, 25_000, [0.006] * 49)
    return with_confirmation(config, [*records, run])


def bare() -> BatchConfig:
    records = [STUDY.workload(), *STUDY.memory((1,)), *STUDY.throughput((1,))[:1]]
    return decide(records, cluster_of(1))


CASES = {
    "full": lambda: decide(
        STUDY.records(), cluster_of(price_per_device_hour=2.5, margin=0.1, reserve="1MiB")
    ),
    "confirmed": confirmed,
    "infeasible counts": lambda: decide(STUDY.records(batches=(64,)), cluster_of((62, 67))),
    "nothing reached": lambda: decide(STUDY.records(reached=lambda _batch: False), cluster_of()),
    "one batch": lambda: decide(STUDY.records(batches=(64,)), cluster_of()),
    "pinned and uneven": lambda: decide(
        STUDY.records(batches=(1437,)), cluster_of(), pinned=BatchPlan(micro_batches=(719, 718))
    ),
    "small rules": lambda: decide(Study(train_examples=1437).records(), cluster_of()),
    "bare": bare,
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def config(request) -> BatchConfig:
    return CASES[request.param]()


def leaves(data, path=()):
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, (*path, key))
    else:
        yield path, data


def test_it_comes_back_from_yaml(config):
    assert BatchConfig.model_validate(yaml.safe_load(config.to_yaml())) == config
    assert BatchConfig.model_validate(config.to_dict()) == config


def test_absent_numbers_are_absent(config):
    written = dict(leaves(yaml.safe_load(config.to_yaml())))
    assert not [path for path, value in written.items() if value is None or value != value]
    assert "null" not in config.to_yaml()


def test_every_plan_states_the_identity(config):
    for answer in config.to_dict()["answers"]:
        plan = answer["plan"]
        micro_batches = plan.get("micro_batches") or [plan["micro_batch"]] * plan["workers"]
        assert plan["global_batch"] == plan["accumulation"] * sum(micro_batches)
        assert len(micro_batches) == plan["workers"]


def test_a_time_to_target_without_evidence_is_not_written():
    data = CASES["nothing reached"]().to_dict()
    for answer in data["answers"]:
        assert not OPTIONAL & set(answer)
        assert "step_time_s" in answer
    assert "critical_batch" not in data["findings"]
    assert "confirmation" not in data


def test_intervals_without_evidence_are_not_written():
    for answer in CASES["one batch"]().to_dict()["answers"]:
        assert {"low", "high"}.isdisjoint(answer["examples_to_target"])
        assert {"low", "high"}.isdisjoint(answer["time_to_target_s"])
        assert answer["examples_to_target"]["value"] > 0


def test_one_launch_has_a_step_time_with_an_interval():
    (answer,) = bare().to_dict()["answers"]
    for quantity in ("step_time_s", "samples_per_s"):
        assert answer[quantity]["low"] < answer[quantity]["value"] < answer[quantity]["high"]


def test_a_cost_needs_a_price():
    without, free, paid = (
        decide(STUDY.records(), cluster_of(**price)).to_dict()["answers"][0]
        for price in ({}, {"price_per_device_hour": 0}, {"price_per_device_hour": 3})
    )
    assert "cost_to_target" not in without
    assert free["cost_to_target"] == 0
    assert paid["cost_to_target"] == pytest.approx(paid["time_to_target_s"]["value"] / 1200)


def test_an_impossible_plan_in_the_file_is_refused():
    data = CASES["full"]().to_dict()
    data["answers"][0]["plan"]["global_batch"] += 1
    with pytest.raises(ValueError, match="global_batch"):
        BatchConfig.model_validate(data)


def test_unknown_keys_in_the_file_are_refused():
    with pytest.raises(ValueError, match="Extra inputs"):
        BatchConfig.model_validate(CASES["full"]().to_dict() | {"colour": "red"})
