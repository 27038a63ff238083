"""Which plan is timed next."""

import numpy as np
import pytest
from step_truths import DrawnTruth, plain_s, rows, spread

from scaler.fit.step_design import half_widths, next_shape
from scaler.fit.step_model import StepShape
from scaler.fit.step_time import fit_step_rows

NOISE = 0.02
ENDS = [StepShape(1, 1, 8), StepShape(1, 4, 512)]
ASKED = spread((1, 2, 4, 8), (8, 64, 512))


def fitted(known, seed=0):
    return fit_step_rows(rows(known, noise=NOISE, seed=seed))


def chosen(fit, asked, costs_s=None):
    return asked[next_shape(fit, asked, costs_s or [1.0] * len(asked))]


def test_a_worker_count_that_is_unknown_is_preferred_to_one_known_many_times():
    asked = spread((1, 8), (8, 512))
    assert chosen(fitted(spread((1,), (8, 512), repeats=6)), asked).workers == 8
    known = [*spread((1,), (8, 512)), *spread((8,), (8, 512), repeats=12)]
    assert chosen(fitted(known), spread((1, 8), (8, 512))).workers == 1


def test_a_micro_batch_that_is_unknown_is_preferred_to_one_known_many_times():
    known = [*spread((1, 4), (8,), repeats=6)]
    assert chosen(fitted(known), spread((1, 4), (8, 2048))).micro_batch == 2048


def test_nodes_that_are_unknown_are_preferred_to_those_known_many_times():
    asked = [*spread((1, 2, 4), (8, 512)), StepShape(2, 8, 8)]
    assert chosen(fitted(spread((1, 2, 4), (8, 512), repeats=4)), asked).nodes == 2


def test_what_tells_nothing_of_the_others_is_not_preferred():
    """A run on another worker count would tell of one plan; on this one, of all of them."""
    asked = [*spread((2,), (8, 16, 32, 64, 128, 256, 512)), StepShape(1, 1, 8)]
    assert chosen(fitted([StepShape(1, 1, 8)] * 4), asked).workers == 2


def test_of_two_equal_ones_the_cheaper_is_chosen():
    fit, asked = fitted(ENDS), [StepShape(1, 2, 64)] * 2
    assert next_shape(fit, asked, [2.0, 1.0]) == 1
    assert next_shape(fit, asked, [1.0, 2.0]) == 0


def test_cost_outweighs_what_would_be_learned():
    fit = fitted(ENDS)
    best = next_shape(fit, ASKED, [1.0] * len(ASKED))
    dear = [1e6 if i == best else 1.0 for i in range(len(ASKED))]
    assert next_shape(fit, ASKED, dear) != best
    assert next_shape(fit, ASKED, [7.0] * len(ASKED)) == best  # only their proportion counts


@pytest.mark.parametrize("seed", range(3))
def test_half_widths_fall_as_chosen_runs_are_added(seed):
    truth = DrawnTruth(ASKED, seed)
    known, worst = list(ENDS), []
    for _ in range(20):
        fit = fit_step_rows(rows(known, truth.step_s))
        worst.append(half_widths(fit, ASKED).max())
        known.append(chosen(fit, ASKED))
    assert worst[-1] < min(0.2 * worst[0], worst[5])


def test_the_chosen_run_narrows_the_intervals_as_much_as_the_best_would():
    fit = fitted(ENDS)

    def left(shape):
        more = rows([*ENDS, shape], lambda s: plain_s(s) if s in ENDS else fit.predict(s).value)
        return float((half_widths(fit_step_rows(more), ASKED) ** 2).mean())

    found = {shape: left(shape) for shape in ASKED}
    assert found[chosen(fit, ASKED)] < 1.2 * min(found.values()) < 0.1 * max(found.values())


def test_half_widths_are_of_means_and_leave_out_how_single_runs_differ():
    shape = StepShape(1, 4, 64)
    few, many = (fitted([shape] * n) for n in (2, 64))
    assert half_widths(many, [shape])[0] < 0.5 * half_widths(few, [shape])[0]
    estimate = many.predict(shape)
    assert half_widths(many, [shape])[0] < 0.5 * np.log(estimate.high / estimate.value)


def test_half_widths_have_the_order_of_the_shapes():
    fit = fitted(spread((1, 2), repeats=2))
    found = half_widths(fit, ASKED)
    assert found.shape == (len(ASKED),) and (found > 0).all()
    assert half_widths(fit, ASKED[::-1]) == pytest.approx(found[::-1])
