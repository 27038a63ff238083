"""What a measurement is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.measure.worth import worth

DRAWS = 20_000


def drawn(means, deviations, seed=0):
    normal = np.random.default_rng(seed).standard_normal((DRAWS, len(means)))
    return np.array(means) + np.array(deviations) * normal


def test_it_is_what_choosing_after_the_answer_saves():
    """Against a simulation: the answer is seen, and the option with the least posterior mean taken."""
    scores, noise = drawn([0.0, 0.1], [0.1, 0.3]), 0.2
    (found,) = worth(scores, scores[:, 1:], np.array([noise]))
    answers = drawn([0.1], [np.hypot(0.3, noise)], seed=1)[:, 0]
    after = 0.1 + 0.3**2 / (0.3**2 + noise**2) * (answers - 0.1)
    assert found == pytest.approx(-np.minimum(0.0, after).mean(), abs=0.005)


def test_what_is_known_is_not_worth_asking():
    scores = drawn([0.0, 0.1], [0.1, 0.0])
    assert worth(scores, scores[:, 1:], np.array([0.0])).tolist() == [0.0]


def test_an_option_that_cannot_win_is_not_worth_asking():
    scores = drawn([0.0, 5.0], [0.1, 0.1])
    assert worth(scores, scores, np.array([0.1, 0.1])).max() < 1e-3


def test_what_moves_all_options_alike_is_not_worth_asking():
    level = drawn([0.0], [1.0])
    assert worth(level + np.array([0.0, 0.1]), level, np.array([0.1])).tolist() == pytest.approx(
        [0.0], abs=1e-9
    )


def test_more_noise_is_worth_less():
    scores = drawn([0.0, 0.05], [0.1, 0.2])
    signals = np.repeat(scores[:, 1:], 3, axis=1)
    low, middle, high = worth(scores, signals, np.array([0.0, 0.2, 1.0]))
    assert low > middle > high > 0


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_no_question_is_worth_more_than_knowing_everything(options, noise):
    means, deviations = zip(*options, strict=True)
    scores = drawn(means, deviations)[:2_000]
    found = worth(scores, scores, np.full(len(options), noise))
    everything = scores.mean(axis=0).min() - scores.min(axis=1).mean()
    assert (found >= 0).all()
    assert (found <= everything + 0.02).all()
