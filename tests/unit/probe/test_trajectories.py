"""Weights in a file, the plane of their principal directions, and curves in blocks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.errors import BadInput
from scaler.probe.regime_path import snapshot_iterations, thinned
from scaler.probe.trajectories import Weights, principal_plane

RANDOM = np.random.default_rng(0)


def test_weights_come_back_as_they_went():
    sets = RANDOM.normal(size=(5, 7)).astype(np.float32)
    with Weights(7) as weights:
        assert [weights.append(row) for row in sets] == list(range(5))
        assert np.array_equal(weights.rows(), sets)


def test_a_full_folder_is_a_clear_failure(monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("wb", buffering=0) as file, Weights(3) as weights, monkeypatch.context() as patch:
        patch.setattr(weights, "_file", file)
        with pytest.raises(BadInput, match="no room") as error:
            weights.append(np.zeros(3, np.float32))
    assert "TMPDIR" in error.value.hint


@pytest.mark.parametrize("parameters", [3, 200_000])
def test_the_plane_is_that_of_a_singular_value_decomposition(parameters):
    rows = RANDOM.normal(size=(12, parameters)).astype(np.float32)
    rows[:, :2] *= (30, 20)
    rows[:, 0] += 1000
    plane = principal_plane(rows, range(12))
    centred = rows.astype(float) - rows.astype(float).mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    assert plane.explained == pytest.approx(values[:2] ** 2 / (values**2).sum(), rel=1e-6)
    assert np.abs(plane.coordinates(rows)) == pytest.approx(
        np.abs(left[:, :2] * values[:2]), rel=1e-4, abs=1e-3
    )
    assert plane.directions @ plane.directions.T == pytest.approx(np.eye(2), abs=1e-9)


def test_points_of_the_plane_come_back_to_their_coordinates():
    rows = RANDOM.normal(size=(6, 40)).astype(np.float32)
    plane = principal_plane(rows, range(6))
    back = plane.coordinates(plane.weights(1.5, -2.0)[None, :])
    assert back[0] == pytest.approx([1.5, -2.0], abs=1e-5)


def test_only_the_chosen_rows_span_the_plane():
    rows = np.zeros((5, 3), np.float32)
    rows[:4, :2] = [(0, 0), (1, 0), (0, 2), (1, 2)]
    rows[4] = (0, 0, 1e20)
    plane = principal_plane(rows, range(4))
    assert np.abs(plane.directions[:, 2]).max() == 0
    assert plane.explained == pytest.approx((0.8, 0.2))


@pytest.mark.parametrize("rows", [np.ones((4, 3)), np.ones((1, 3)), np.arange(4.0)[:, None]])
def test_without_variance_a_direction_is_zero(rows):
    plane = principal_plane(rows.astype(np.float32), range(len(rows)))
    assert np.isfinite(plane.directions).all()
    assert not plane.directions[1].any() and plane.explained[1] == 0


@given(st.integers(1, 10**7), st.integers(2, 50))
def test_snapshots_are_few_and_end_with_the_last_step(planned, snapshots):
    found = snapshot_iterations(planned, snapshots)
    assert len(found) < snapshots
    assert min(found) >= 1 and max(found) == planned


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=1200))
def test_a_thinned_curve_keeps_mean_extremes_and_noise(costs):
    curve = thinned(costs, [0.5 * (i + 1) for i in range(len(costs))])
    assert len(curve.mean) <= 500
    lengths = np.diff(curve.iterations, prepend=0)
    assert curve.iterations[-1] == len(costs) and (lengths[:250] == 1).all()
    assert np.average(curve.mean, weights=lengths) == pytest.approx(np.mean(costs), abs=1e-6)
    assert (min(curve.low), max(curve.high)) == (min(costs), max(costs))
    changes = np.diff(costs)
    assert (np.asarray(curve.squared_change) * lengths).sum() == pytest.approx((changes**2).sum(), abs=1e-3)
    assert sum(curve.rises) == (changes > 0).sum()
    assert curve.time_s[-1] == 0.5 * len(costs)
