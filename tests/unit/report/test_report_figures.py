import pytest
import report_study as study

from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import Optimizer
from scaler.records import ConvergenceRecord, MemoryRecord, ThroughputRecord
from scaler.report.costs import memory_figure, step_time_figure, throughput_figure
from scaler.report.figures import build_figures
from scaler.report.training import curves_figure, examples_figure, rates_figure, target_words


def kinds(figure) -> list[str]:
    return [series.kind for series in figure.series]


def only(records, kind: type) -> list:
    return [r for r in records if isinstance(r, kind) and r.kind != "confirmation"]


def with_fit(trials):
    return trials, fit_convergence(trials, Optimizer(""))


def test_memory_shows_each_worker_count_the_capacity_and_what_failed(records):
    figure = memory_figure(only(records, MemoryRecord))
    assert [s.label for s in figure.series] == [
        "1 worker",
        "1 worker, accumulating",
        "2 workers",
        "out of memory",
    ]
    assert [(p.x, p.y) for p in figure.series[1].points] == [(8, 24 * study.MIB)]
    assert figure.level.y == study.CAPACITY
    failed = figure.series[-1]
    assert failed.kind == "failed"
    assert {p.x for p in failed.points} == {2048}
    assert "1,024 examples" in figure.caption
    assert "2,048 ran out of memory" in figure.caption
    assert "of 256.0 MiB" in figure.caption
    assert "19 measurements" in figure.caption


def test_memory_takes_the_clusters_capacity_first(records):
    figure = memory_figure(only(records, MemoryRecord), capacity_bytes=2**30)
    assert figure.level.y == 2**30


def test_step_times_are_medians_after_warmup_with_the_fits_curve(records):
    figure = step_time_figure(only(records, ThroughputRecord))
    assert kinds(figure) == ["points", "curve"] * 3
    assert [s.label for s in figure.series if s.label] == ["1 worker", "2 workers", "4 workers"]
    points = figure.series[0].points
    assert len(points) == 8
    assert points[0].y == pytest.approx(0.97 * (0.002 + 2e-5 * 8))
    curve = figure.series[1].points
    assert (curve[0].x, curve[-1].x) == (8, 512)
    assert curve[-1].y == pytest.approx(0.002 + 2e-5 * 512, rel=0.05)
    assert "24 runs" in figure.caption
    assert "2.1 ms (micro-batch 8 on 1 worker)" in figure.caption


def test_a_run_of_warmup_only_is_no_evidence(records):
    run = only(records, ThroughputRecord)[0]
    assert step_time_figure([run.model_copy(update={"warmup_steps": 4})]) is None
    assert throughput_figure([]) is None


def test_one_plan_is_a_point_without_a_curve(records):
    figure = step_time_figure(only(records, ThroughputRecord)[:2])
    assert kinds(figure) == ["points"]


def test_throughput_says_the_gain_over_the_fewest_workers(records):
    figure = throughput_figure(only(records, ThroughputRecord))
    best = max(p.y for s in figure.series if s.kind == "points" for p in s.points)
    assert f"{best:,.0f} samples/s (micro-batch 512 on 4 workers)" in figure.caption
    assert "times the most on 1 worker" in figure.caption


def test_curves_are_one_seed_of_each_batch_at_its_best_rate(records):
    figure = curves_figure(only(records, ConvergenceRecord), (0.949, "max"))
    assert [s.label for s in figure.series][:2] == ["32 (rate 0.05)", "64 (rate 0.07071)"]
    assert len(figure.series) == 6  # 2,048 did not reach the target
    assert figure.level.label == "target, 0.949 or more"
    assert all(p.x > 0 for s in figure.series for p in s.points)
    assert "Global batch 32" in figure.caption
    assert curves_figure(only(records, ConvergenceRecord)).level is None


def test_examples_to_target_has_every_seed_the_fit_and_its_band(records):
    figure = examples_figure(*with_fit(only(records, ConvergenceRecord)))
    seeds, fit, missed = figure.series
    assert len(seeds.points) == 12
    assert all(p.low < p.y < p.high for p in fit.points)
    assert [(p.x, p.y) for p in missed.points] == [(2048, 120_000)]
    assert "critical batch is 3" in figure.caption and "(90% interval" in figure.caption
    assert "12 runs" in figure.caption


def test_one_batch_has_no_fit_and_says_so(records):
    trials = [t for t in only(records, ConvergenceRecord) if t.plan.global_batch == 32]
    figure = examples_figure(*with_fit(trials))
    assert kinds(figure) == ["points"]
    assert "not identifiable" in figure.caption
    assert "not identifiable from 1 global batch" in rates_figure(*with_fit(trials)).caption


def test_rates_show_the_best_over_all_that_were_tried(records):
    figure = rates_figure(*with_fit(only(records, ConvergenceRecord)))
    tried, best, fitted = figure.series
    assert all(p.low <= p.y <= p.high for p in fitted.points)
    assert (tried.kind, len(tried.points)) == ("pale", 19)
    assert [p.x for p in best.points] == [32, 64, 128, 256, 512, 1024]
    assert "to the power 0.5" in figure.caption
    assert "38 trials" in figure.caption


def test_a_figure_without_evidence_is_absent_and_named(config, records):
    figures = build_figures(config, records)
    assert [f.name for f in figures.present] == [
        "examples",
        "rates",
        "curves",
        "step-time",
        "throughput",
        "memory",
    ]
    assert figures.absent == ()
    nothing = build_figures(config, [])
    assert nothing.present == ()
    assert "Training curves: no trial was run." in nothing.absent
    missed = [study.trial(32, 0.1, 0, 1000, reached=False)]
    assert (
        "Examples to target: no learning rate reached the target at every seed."
        in build_figures(config, missed).absent
    )


def test_target_words_say_the_direction():
    assert target_words((0.949, "max")) == "0.949 or more"
    assert target_words((1.7, "min")) == "1.7 or less"
