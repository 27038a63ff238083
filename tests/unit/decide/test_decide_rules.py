import pytest
from decide_records import BATCHES, Study, cluster_of

from scaler.decide.decide import decide

NEVER_BENDS = 1e5


def by_words(config, words):
    return next(rule for rule in config.rules_of_thumb if words in rule.rule)


def test_a_large_batch_that_is_fastest_agrees():
    config = decide(Study(critical_batch=NEVER_BENDS).records(), cluster_of(1))
    rule = by_words(config, "largest batch")
    assert rule.global_batch == max(BATCHES) == config.chosen.plan.global_batch
    assert rule.agrees
    assert rule.time_ratio == 1
    assert rule.verdict.startswith("measurement agrees")


@pytest.mark.parametrize("critical_batch", [20.0, 150.0, 300.0, 2000.0, NEVER_BENDS])
def test_a_rule_agrees_within_5_percent_of_the_best_time(critical_batch):
    study = Study(critical_batch=critical_batch, sync_s=0.0)
    config = decide(study.records(), cluster_of(1))

    def true_time_s(batch):
        return study.examples(batch) / batch * (study.overhead_s + study.per_example_s * batch)

    best_s = min(map(true_time_s, BATCHES))
    usual = by_words(config, "64 to 512")
    largest = by_words(config, "largest batch")
    assert usual.global_batch in (64, 128, 256, 512)
    assert true_time_s(usual.global_batch) <= 1.01 * min(true_time_s(b) for b in (64, 128, 256, 512))
    assert largest.global_batch == 1024
    for rule in (usual, largest):
        assert rule.time_ratio == pytest.approx(true_time_s(rule.global_batch) / best_s, rel=0.03)
        assert rule.agrees is (rule.time_ratio <= 1.05)
        assert rule.verdict.startswith("measurement agrees" if rule.agrees else "measurement disagrees")


def test_the_full_batch_of_a_small_data_set_is_judged():
    for critical_batch, agrees in ((NEVER_BENDS, True), (50.0, False)):
        study = Study(critical_batch=critical_batch, train_examples=1437)
        config = decide(study.records(batches=(*BATCHES, 1437)), cluster_of(1))
        rule = by_words(config, "full batch")
        assert rule.global_batch == 1437
        assert rule.agrees is agrees
        assert (rule.time_ratio > 1.05) is not agrees
        assert not [r for r in config.rules_of_thumb if "64 to 512" in r.rule]


def test_a_full_batch_without_a_time_is_not_called_right():
    config = decide(
        Study(train_examples=1437).records(batches=(64, 1437), reached=lambda batch: batch == 64),
        cluster_of(1),
    )
    rule = by_words(config, "full batch")
    assert not rule.agrees
    assert rule.time_ratio is None
    assert "1,437" in rule.verdict


def test_a_full_batch_that_the_search_left_out_is_predicted():
    study = Study(critical_batch=50.0, train_examples=1437)
    config = decide(study.records(), cluster_of(1))
    rule = by_words(config, "full batch")
    tried = by_words(decide(study.records(batches=(*BATCHES, 1437)), cluster_of(1)), "full batch")
    assert rule.global_batch == 1437
    assert not rule.agrees
    assert rule.time_ratio == pytest.approx(tried.time_ratio, rel=0.1)
    assert rule.verdict.startswith("prediction disagrees: 1,437 was not tried")


def test_the_rule_of_small_data_sets_stops_at_2000_examples():
    for examples, applies in ((2000, True), (2001, False)):
        config = decide(Study(train_examples=examples).records(), cluster_of(1))
        assert bool([r for r in config.rules_of_thumb if "full batch" in r.rule]) is applies


def test_a_rule_whose_batches_were_not_measured_is_left_out_or_predicted():
    config = decide(Study().records(batches=(700, 1024)), cluster_of(1))
    assert not [rule for rule in config.rules_of_thumb if "64 to 512" in rule.rule]
    config = decide(Study().records(batches=(16, 1024)), cluster_of(1))
    assert by_words(config, "64 to 512").verdict.startswith("prediction ")


def test_rules_for_the_rate_are_scored_at_the_answers_batch():
    config = decide(Study(overhead_s=0.05).records(), cluster_of(1))
    plan = config.chosen.plan
    assert plan.global_batch >= 512
    linear, root = by_words(config, "in proportion"), by_words(config, "square root")
    assert linear.global_batch == root.global_batch == plan.global_batch
    assert linear.time_ratio > root.time_ratio >= 1  # the study's best rates grow with the square root
    assert not linear.agrees


def test_rules_are_judged_on_the_chosen_worker_count():
    config = decide(Study().records(), cluster_of())
    usual = by_words(config, "64 to 512")
    assert config.chosen_workers == 4
    assert usual.global_batch == config.chosen.plan.global_batch
    assert usual.time_ratio == 1


def test_without_times_no_rule_is_judged():
    assert decide(Study().records(reached=lambda _batch: False), cluster_of()).rules_of_thumb == ()
