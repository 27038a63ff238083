"""The form of a step's time, whatever its parameters."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.fit.step_model import Grid, Layout, StepShape

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)

PARTS = ["log_compute", "log_sync", "log_step"]
OVERHEAD_S, PER_EXAMPLE_S, LEVEL_S = 0.004, 1e-4, 0.01

shapes = st.builds(
    lambda nodes, more, micro_batch, accumulation: StepShape(nodes, nodes * more, micro_batch, accumulation),
    st.sampled_from([1, 2, 3, 8]),
    st.sampled_from([1, 2, 5, 8]),
    st.integers(1, 5000),
    st.sampled_from([1, 2, 7]),
)
grids = st.lists(shapes, min_size=1, max_size=6)


@st.composite
def cases(draw):
    """Shapes with parameters as far from their usual values as a search may go."""
    layout = Layout.of(found := draw(grids))
    x = np.zeros(layout.size)
    x[Layout.OVERHEAD], x[Layout.PER_EXAMPLE] = draw(st.floats(-9, 3)), draw(st.floats(-12, 0))
    x[Layout.STRAGGLE], x[Layout.OVERLAP] = draw(st.floats(-0.2, 0.3)), draw(st.floats(-2, 2))
    x[layout.levels] = [draw(st.floats(-9, 3)) for _ in layout.node_counts]
    x[layout.growths] = [draw(st.floats(-0.25, 0.6)) for _ in layout.node_counts]
    x[layout.deviations.start :] = draw(st.floats(-0.3, 0.3))
    return layout, found, x


def typical(layout, **changes):
    """Parameters in the middle of what is usual; `changes` by the name of a shared one."""
    x = np.zeros(layout.size)
    x[Layout.OVERHEAD], x[Layout.PER_EXAMPLE] = np.log(OVERHEAD_S), np.log(PER_EXAMPLE_S)
    x[Layout.STRAGGLE], x[Layout.OVERLAP], x[layout.growths] = 0.02, 0.2, 0.15
    x[layout.levels] = np.log(LEVEL_S)
    for name, value in changes.items():
        x[getattr(Layout, name.upper())] = value
    return x


def seconds(of, *asked, **changes):
    """What `of` says of the shapes asked, in seconds."""
    layout = Layout.of(asked)
    return np.exp(getattr(Grid(layout, asked), of)(typical(layout, **changes))[0])


@quiet
@given(cases(), st.sampled_from(PARTS))
def test_the_derivatives_are_those_of_the_values(case, part):
    layout, found, x = case
    function = getattr(Grid(layout, found), part)
    values, slopes = function(x)
    assert slopes.shape == (len(found), layout.size)
    for i, step in enumerate(1e-6 * np.eye(layout.size)):
        numerical = (function(x + step)[0] - function(x - step)[0]) / 2e-6
        assert slopes[:, i] == pytest.approx(numerical, rel=1e-4, abs=1e-4)
    assert np.isfinite(values).all()


@quiet
@given(cases())
def test_a_step_is_never_shorter_than_its_compute_or_its_synchronisation(case):
    layout, found, x = case
    grid = Grid(layout, found)
    step, compute, sync = (getattr(grid, part)(x)[0] for part in ("log_step", "log_compute", "log_sync"))
    assert (step >= np.maximum(compute + np.log(grid.accumulation), sync) - 1e-9).all()
    # Nor longer than both of them one after the other.
    assert (step <= np.logaddexp(compute + np.log(grid.accumulation), sync) + 1e-9).all()


@quiet
@given(cases())
def test_a_step_does_not_depend_on_its_neighbours(case):
    layout, found, x = case
    together = Grid(layout, found).log_step(x)[0]
    assert [Grid(layout, [shape]).log_step(x)[0][0] for shape in found] == pytest.approx(together)


def test_one_worker_does_not_synchronise():
    (step_s,) = seconds("log_step", StepShape(1, 1, 64))
    assert step_s == pytest.approx(OVERHEAD_S + 64 * PER_EXAMPLE_S)
    beside = seconds("log_step", StepShape(1, 1, 64), StepShape(1, 4, 64))
    assert beside[0] == step_s < beside[1]
    assert seconds("log_sync", StepShape(1, 1, 64)) == 0


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_accumulating_adds_whole_passes(workers):
    asked = [StepShape(1, workers, 64, accumulation) for accumulation in (1, 2, 3, 10)]
    step_s, compute_s = seconds("log_step", *asked), seconds("log_compute", *asked)
    assert step_s - step_s[0] == pytest.approx(compute_s * [0, 1, 2, 9])


def test_without_overlap_computing_and_synchronising_add_up():
    asked = [StepShape(1, 4, 64), StepShape(2, 8, 8)]
    parts = seconds("log_compute", *asked) + seconds("log_sync", *asked)
    assert seconds("log_step", *asked, overlap=-30.0) == pytest.approx(parts)


def test_the_more_they_overlap_the_nearer_a_step_is_to_the_longer_of_the_two():
    asked = StepShape(1, 4, 64)
    longer = max(*seconds("log_compute", asked), *seconds("log_sync", asked))
    steps_s = [float(seconds("log_step", asked, overlap=overlap)[0]) for overlap in (-3, 0, 1, 2, 4)]
    assert steps_s == sorted(steps_s, reverse=True)
    assert steps_s[-1] == pytest.approx(longer, rel=0.01)


@pytest.mark.parametrize("nodes", [1, 2])
def test_synchronisation_grows_with_the_workers_and_does_not_run_away(nodes):
    workers = [nodes * 2**k for k in range(1, 12)]
    sync_s = seconds("log_sync", *(StepShape(nodes, w, 64) for w in workers))
    step_s = seconds("log_step", *(StepShape(nodes, w, 64) for w in workers))
    for times in (sync_s, step_s):
        assert (np.diff(times) > 0).all()
        # A thousand times the workers, and less than five times the time.
        assert times[-1] < 5 * times[0]
        assert (np.diff(np.log(times)) < np.log(2)).all()


def test_more_examples_take_longer_and_are_cheaper_each():
    sizes = [1, 2, 30, 400, 5000]
    step_s = seconds("log_step", *(StepShape(1, 1, m) for m in sizes))
    for (small, fast), (large, slow) in itertools.pairwise(zip(sizes, step_s, strict=True)):
        assert fast < slow < fast * large / small


def test_shapes_of_one_size_share_their_parameters():
    asked = [StepShape(1, 2, 64), StepShape(1, 2, 64, 4), StepShape(2, 4, 64), StepShape(2, 8, 65)]
    layout = Layout.of(asked)
    assert layout.node_counts == (1, 2)
    assert layout.placements == ((1, 2), (2, 4), (2, 8))
    assert len(layout.knots) == 1  # 65 is hardly more than 64
    assert layout.size == 6 + 2 * 2 + 3 + 1


@quiet
@given(grids, grids)
def test_a_layout_is_extended_to_that_of_all_shapes(first, more):
    assert Layout.of(first).extended(more) == Layout.of([*first, *more])
    assert Layout.of(first).extended(first) == Layout.of(first)
