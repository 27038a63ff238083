import itertools
import math
import pickle

import pytest
import torch
from torch.utils.data import default_collate

from scaler.workload import load_workload
from scaler.workloads import gpt2


@pytest.fixture(scope="module")
def workload():
    return load_workload("gpt2")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return gpt2.GPT2(layers=2, width=32, heads=2)


def batch(workload, examples, tokens):
    items = [workload.train_data()[i] for i in range(examples)]
    return tuple(part[:, :tokens] for part in default_collate(items))


def test_sizes_are_those_of_gpt2_small(workload):
    with torch.device("meta"):
        net = workload.model()
        assert sum(p.numel() for p in net.parameters()) == 124_439_808
        assert net(torch.zeros(2, 8, dtype=torch.int64)).shape == (2, 8, 50_257)


def test_sequences_have_the_stated_sizes_and_form(workload):
    for data, examples in ((workload.train_data(), 20_000), (workload.eval_data(), 64)):
        assert len(data) == examples
        for tokens, targets in (data[0], data[examples - 1]):
            for part in (tokens, targets):
                assert part.shape == (1_024,) and part.dtype == torch.int64
                assert part.min() >= 0 and part.max() < 50_257
            assert torch.equal(tokens[1:], targets[:-1])
        with pytest.raises(IndexError):
            data[examples]


def test_a_sequence_is_the_same_each_time_whatever_the_seed(workload):
    before = workload.train_data()[7]
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(before, workload.train_data()[7], strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_sequences_differ_within_and_between_the_parts(workload):
    data = (workload.train_data(), workload.eval_data())
    rows = [tuple(part[i][0].tolist()) for part in data for i in range(50)]
    assert len(set(rows)) == 100


def test_a_token_is_followed_by_one_of_four_equally_often(workload):
    pairs = [workload.train_data()[i] for i in range(100)]
    tokens, targets = (torch.stack(part) // gpt2._SPACING for part in zip(*pairs, strict=True))
    assert tokens.unique().numel() == gpt2.STATES
    steps, counts = ((targets - tokens) % gpt2.STATES).unique(return_counts=True)
    assert steps.tolist() == sorted(gpt2.STEPS)
    assert torch.all((counts / counts.sum() - 0.25).abs() < 0.01)


def test_loss_is_a_finite_scalar_with_gradient(workload, net):
    value = workload.loss(net, batch(workload, 2, 8))
    value.backward()
    assert value.shape == () and torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_untrained_metric_is_near_that_of_a_guess(workload, net):
    with torch.no_grad():
        value = float(workload.metric(net.eval(), batch(workload, 2, 32)))
    assert value == pytest.approx(math.log(50_257), abs=0.2)


def test_trains_in_bfloat16(workload, net):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert workload.precision == "bf16"
        assert net(batch(workload, 1, 8)[0]).dtype == torch.bfloat16
        assert workload.loss(net, batch(workload, 1, 8)).dtype == torch.float32


def test_sees_no_later_token(workload, net):
    tokens, _ = batch(workload, 2, 16)
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 50_257
    with torch.no_grad():
        before, after = net.eval()(tokens), net(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-5)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-5)


def test_weight_counts_tokens_and_the_worst_case_is_full(workload):
    sequences = workload.worst_case(3)
    items = default_collate([workload.train_data()[i] for i in range(3)])
    assert [(p.shape, p.dtype) for p in sequences] == [(p.shape, p.dtype) for p in items]
    assert all(part.min() >= 0 and part.max() < 50_257 for part in sequences)
    assert workload.weight(sequences) == workload.weight(items) == 3 * 1_024


def test_optimizer_has_the_stated_settings(workload, net):
    (group,) = workload.optimizer(net.parameters(), 0.01).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.9, 0.95), 0.1)


def test_learns(workload, net):
    optimizer = workload.optimizer(net.parameters(), 1e-2)
    sequences = batch(workload, 2, 16)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        value = workload.loss(net, sequences)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 1


def test_target_lies_between_the_best_loss_and_that_without_order(workload):
    assert math.log(len(gpt2.STEPS)) < workload.target.value < math.log(gpt2.STATES)


def test_data_ends_and_pickles(workload):
    data = pickle.loads(pickle.dumps(workload.eval_data()))
    assert sum(1 for _ in itertools.islice(data, 100)) == 64
    assert pickle.loads(pickle.dumps(workload)) == workload
