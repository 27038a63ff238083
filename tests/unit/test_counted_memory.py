import gc
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from scaler.cluster import ConcealedBias
from scaler.counted_memory import CountedMemory

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ROUNDING = 512
KIB = 1024


def floats(count):
    return torch.empty(count)


def rounded(nbytes):
    return -(-nbytes // ROUNDING) * ROUNDING


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (lambda p: torch.optim.AdamW(p, lr=0.1), 2),
    ],
)
def test_parameters_gradients_and_optimizer_state_are_counted(optimizer, states):
    x = torch.randn(16, 30)
    with CountedMemory() as counted:
        net = nn.Sequential(nn.Linear(30, 50), nn.Tanh(), nn.Linear(50, 7))
        steps = optimizer(net.parameters())
        net(x).square().mean().backward()
        steps.step()
    parameters = list(net.parameters())
    exact = (2 + states) * sum(p.numel() * 4 for p in parameters)
    # Each tensor is rounded up once; Adam also keeps a step count per parameter.
    tensors = (2 + states + (states == 2)) * len(parameters)
    assert exact <= counted.live_bytes <= exact + tensors * ROUNDING
    assert counted.peak_bytes >= counted.live_bytes


def test_zeroing_gradients_gives_their_bytes_back():
    with CountedMemory() as counted:
        net = nn.Linear(100, 100, bias=False)
        built = counted.live_bytes
        net(torch.ones(1, 100)).sum().backward()
        assert counted.live_bytes == 2 * built
        net.zero_grad(set_to_none=True)
        assert counted.live_bytes == built


def test_freed_tensors_are_not_counted_and_the_peak_stays():
    with CountedMemory() as counted:
        first = floats(1000)
        second = floats(3000)
        del first
        third = floats(500)
        assert counted.live_bytes == rounded(12_000) + rounded(2_000)
        assert counted.peak_bytes == rounded(4_000) + rounded(12_000)
        del second, third
    assert counted.live_bytes == 0
    assert counted.peak_bytes == rounded(4_000) + rounded(12_000)


def test_tensors_freed_after_the_block_are_not_counted_either():
    with CountedMemory() as counted:
        kept = floats(1000)
    assert counted.live_bytes == rounded(4_000)
    del kept
    assert counted.live_bytes == 0


@quiet
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=30))
def test_the_count_is_the_sum_of_what_lives(moves):
    lives: list[torch.Tensor] = []
    peak = 0
    with CountedMemory() as counted:
        for allocate, number in moves:
            if allocate:
                lives.append(floats(number))
            elif lives:
                del lives[number % len(lives)]
            expected = sum(rounded(t.numel() * 4) for t in lives)
            peak = max(peak, expected)
            assert counted.live_bytes == expected
        assert counted.peak_bytes == peak


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.view(10, 100),
        lambda t: t[3:700],
        lambda t: t.reshape(100, 10).t(),
        lambda t: t.detach(),
        lambda t: t.unsqueeze(0).expand(50, 1000),
        lambda t: t.add_(1),
        lambda t: t.split(100),
    ],
)
def test_views_and_in_place_operators_are_free(view):
    with CountedMemory() as counted:
        whole = torch.zeros(1000)
        before = counted.live_bytes
        seen = view(whole)
        assert counted.live_bytes == counted.peak_bytes == before
        del whole
        assert counted.live_bytes == before  # the view keeps the storage
        del seen
        assert counted.live_bytes == 0


@pytest.mark.parametrize("touch", [lambda d: d[5:9], lambda d: d.mul_(2), lambda d: d.view(-1), torch.detach])
def test_what_existed_before_is_not_counted(touch):
    data_set = torch.ones(1000, 8)
    with CountedMemory() as counted:
        touched = touch(data_set)
        assert counted.peak_bytes == 0
        batch = data_set[torch.tensor([1, 2, 3])]
        assert counted.live_bytes == rounded(3 * 8 * 4)
    del touched, batch, data_set
    assert counted.live_bytes == 0


def test_growing_in_place_is_counted():
    with CountedMemory() as counted:
        grown = floats(10)
        grown.resize_(5000)
        assert counted.live_bytes == counted.peak_bytes == rounded(20_000)
        del grown
        assert counted.live_bytes == 0


def test_what_backward_keeps_is_counted_until_it_is_used():
    x = torch.randn(100, 100)
    with CountedMemory() as counted:
        weight = torch.randn(100, 100, requires_grad=True)
        built = counted.live_bytes
        out = x
        for _ in range(4):
            out = torch.tanh(out @ weight)
        out = out.sum()
        # tanh keeps its result; the products in between are gone.
        held = counted.live_bytes - built
        assert 4 * 40_000 <= held <= 4 * rounded(40_000) + 2 * ROUNDING
        out.backward()
        del out
        gc.collect()
        assert counted.live_bytes == 2 * built  # the weight and its gradient
    assert counted.peak_bytes >= built + held


def test_sparse_gradients_are_counted():
    with CountedMemory() as counted:
        table = nn.Embedding(1000, 16, sparse=True)
        built = counted.live_bytes
        table(torch.tensor([3, 5])).sum().backward()
        held = counted.live_bytes - built
        assert table.weight.grad.layout == torch.sparse_coo
        assert 2 * 16 * 4 <= held < built / 4  # two rows, not the whole table
        torch.optim.SGD(table.parameters(), lr=0.1).step()


def test_without_a_graph_nothing_is_kept():
    x = torch.randn(100, 100)
    with CountedMemory() as counted, torch.no_grad():
        weight = torch.randn(100, 100)
        for _ in range(4):
            x = torch.tanh(x @ weight)
        assert counted.live_bytes == 2 * rounded(40_000)


def test_over_budget_raises_as_cuda_does_and_the_count_recovers():
    with CountedMemory(100 * KIB) as counted:
        kept = floats(10 * KIB)  # 40 KiB
        with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\."):
            floats(20 * KIB)
        assert counted.live_bytes == 40 * KIB
        assert counted.peak_bytes <= 100 * KIB
        more = floats(15 * KIB)  # exactly what is left
        assert counted.live_bytes == counted.peak_bytes == 100 * KIB
        with pytest.raises(torch.OutOfMemoryError):
            floats(1)
        del kept, more
        again = floats(25 * KIB)
        assert counted.live_bytes == again.numel() * 4


def test_running_out_in_backward_leaves_nothing_behind():
    x = torch.randn(64, 64)

    def train():
        net = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)])
        net(x).square().mean().backward()

    with CountedMemory() as counted:
        train()
    gc.collect()
    assert counted.live_bytes == 0
    for share in (0.3, 0.6, 0.9):
        with CountedMemory(int(counted.peak_bytes * share)) as tight:
            with pytest.raises(torch.OutOfMemoryError):
                train()
            gc.collect()
            assert tight.live_bytes == 0
    with CountedMemory(counted.peak_bytes) as enough:
        train()
    assert enough.peak_bytes == counted.peak_bytes


def test_growing_in_place_over_budget_raises():
    with CountedMemory(10 * KIB) as counted:
        grown = floats(KIB)
        with pytest.raises(torch.OutOfMemoryError):
            grown.resize_(10 * KIB)
        del grown
        assert counted.live_bytes == 0


def test_tensors_without_bytes_are_not_counted():
    with CountedMemory(KIB) as counted:
        shape = torch.empty(10**12, device="meta")
        net = nn.Linear(10**5, 10**5, device="meta")
        assert (counted.live_bytes, counted.peak_bytes) == (0, 0)
        real = floats(10)
        assert counted.live_bytes == ROUNDING
    del shape, net, real


# What a device conceals


@pytest.mark.parametrize(
    ("concealed", "counted_bytes"),
    [
        (ConcealedBias(), [0, 1000, 10_000, 100_000]),
        (ConcealedBias(share=0.04), [0, 1040, 10_400, 104_000]),
        (ConcealedBias(step_at="10kB", step_share=0.05), [0, 1000, 10_500, 105_000]),
        (ConcealedBias(share=0.04, step_at="10kB", step_share=0.05), [0, 1040, 10_900, 109_000]),
        (ConcealedBias(share=0.001), [0, 1001, 10_010, 100_100]),
    ],
)
def test_a_device_counts_its_share_beyond_the_live_bytes(concealed, counted_bytes):
    found = [concealed.counted_bytes(live) for live in (0, 1000, 10_000, 100_000)]
    assert found == pytest.approx(counted_bytes, abs=1)
    assert all(isinstance(count, int) for count in found)


def test_the_step_is_at_its_bytes_and_not_before():
    concealed = ConcealedBias(step_at="10kB", step_share=0.1)
    assert concealed.counted_bytes(9_999) == 9_999
    assert concealed.counted_bytes(10_000) == 11_000


def test_the_peak_has_what_is_concealed_and_the_live_bytes_do_not():
    concealed = ConcealedBias(share=0.02, step_at="8KiB", step_share=0.05)
    with CountedMemory(concealed=concealed) as counted:
        kept = floats(KIB)  # 4 KiB
        assert (counted.live_bytes, counted.peak_bytes) == (4 * KIB, int(4 * KIB * 1.02))
        more = floats(2 * KIB)
        assert (counted.live_bytes, counted.peak_bytes) == (12 * KIB, int(12 * KIB * 1.07))
        del kept, more
        assert (counted.live_bytes, counted.peak_bytes) == (0, int(12 * KIB * 1.07))


@quiet
@given(
    st.lists(st.integers(0, 5000), max_size=20),
    st.floats(0, 0.05),
    st.floats(0, 0.05),
    st.integers(1, 90_000),
)
def test_the_concealed_peak_is_that_of_the_most_live_bytes(numbers, share, step_share, step_at):
    concealed = ConcealedBias(share=share, step_at=step_at, step_share=step_share)
    with CountedMemory() as plain, CountedMemory(concealed=concealed) as biased:
        lives = [floats(number) for number in numbers]
    assert biased.live_bytes == plain.live_bytes
    assert biased.peak_bytes == concealed.counted_bytes(plain.peak_bytes) >= plain.peak_bytes
    del lives


def test_a_device_runs_out_at_what_it_counts():
    capacity = 100 * KIB
    concealed = ConcealedBias(share=0.1)
    with CountedMemory(capacity, concealed) as counted:
        kept = floats(20 * KIB)  # 80 KiB, counted as 88
        with pytest.raises(torch.OutOfMemoryError, match=f"; {88 * KIB} of {capacity} are in use"):
            floats(3 * KIB)
        assert counted.live_bytes == 80 * KIB
        assert counted.peak_bytes == 88 * KIB
    with CountedMemory(capacity) as counted:
        more = floats(23 * KIB)
        assert counted.live_bytes == 92 * KIB
    del kept, more


# Against the allocator's own record


def training(width, examples, optimizer):
    net = nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 8)
    )
    steps = optimizer(net.parameters())
    for _ in range(2):
        x = torch.randn(examples, width)
        net(x).square().mean().backward()
        del x
        steps.step()
        steps.zero_grad()


def allocator_peak(train):
    """The most bytes that PyTorch's CPU allocator had handed out, by the profiler's memory events."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    assert live[-1] == 0
    return max(live)


@pytest.mark.parametrize(("width", "examples"), [(256, 64), (64, 4096), (256, 1024)])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    ],
    ids=["sgd", "adamw", "foreach"],
)
def test_the_count_is_what_the_allocator_handed_out(width, examples, optimizer):
    """An independent truth, from below the dispatcher.

    It has no rounding to 512 bytes (of some 20 tensors at a time, 1 to 8 MB in all), and it has what
    kernels take for themselves, which is next to nothing for matrix products.
    """
    with CountedMemory() as counted:
        training(width, examples, optimizer)
    exact = allocator_peak(lambda: training(width, examples, optimizer))
    assert counted.peak_bytes == pytest.approx(exact, rel=0.01)
