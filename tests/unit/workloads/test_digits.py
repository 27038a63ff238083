import pickle

import pytest
import torch
from sklearn.datasets import load_digits

from scaler.workload import load_workload
from scaler.workloads import digits


@pytest.fixture(scope="module")
def workload():
    return load_workload("digits")


def test_split_has_the_stated_sizes_and_form(workload):
    for data, examples in ((workload.train_data(), 1_437), (workload.eval_data(), 360)):
        pixels, labels = data.tensors
        assert pixels.shape == (examples, 64) and pixels.dtype == torch.float32
        assert labels.shape == (examples,) and labels.dtype == torch.int64
        assert pixels.min() == 0 and pixels.max() == 1
        assert labels.unique().tolist() == list(range(10))


def test_the_examples_are_scikit_learns(workload):
    known = load_digits()
    rows = [
        (*image, label)
        for data in (workload.train_data(), workload.eval_data())
        for image, label in zip((data.tensors[0] * 16).tolist(), data.tensors[1].tolist(), strict=True)
    ]
    known_rows = [
        (*image, label) for image, label in zip(known.data.tolist(), known.target.tolist(), strict=True)
    ]
    assert sorted(rows) == sorted(known_rows)


def test_split_is_the_same_each_time_whatever_the_seed(workload):
    before = [part.clone() for part in workload.train_data().tensors]
    digits._split.cache_clear()
    torch.manual_seed(123)
    again = workload.train_data().tensors
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))


def test_split_leaves_the_global_random_state_alone(workload):
    digits._split.cache_clear()
    state = torch.get_rng_state()
    workload.train_data()
    assert torch.equal(state, torch.get_rng_state())


def test_no_image_is_in_both_parts(workload):
    rows = [
        {(*x.tolist(), int(y)) for x, y in zip(*d().tensors, strict=True)}
        for d in (workload.train_data, workload.eval_data)
    ]
    assert not rows[0] & rows[1]


def test_loss_is_a_finite_scalar_with_gradient(workload):
    net = workload.model()
    value = workload.loss(net, workload.train_data()[:32])
    value.backward()
    assert value.shape == () and torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_loss_is_the_mean_over_examples(workload):
    net, data = workload.model(), workload.train_data()
    halves = [workload.loss(net, data[i : i + 16]).item() for i in (0, 16)]
    assert workload.loss(net, data[:32]).item() == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_accuracy_counts_correct_answers(workload):
    pixels, labels = torch.eye(10), torch.arange(10)
    assert float(workload.metric(torch.nn.Identity(), (pixels, labels))) == 1
    assert float(workload.metric(torch.nn.Identity(), (pixels, (labels + 1) % 10))) == 0


def test_weight_is_left_to_the_number_of_examples(workload):
    assert workload.weight is None


def test_pickles_as_its_address(workload):
    assert pickle.loads(pickle.dumps(workload)) == workload


@pytest.mark.parametrize(("global_batch", "learning_rate"), [(64, 0.1), (1_437, 0.3)])
def test_reaches_the_target(workload, global_batch, learning_rate):
    torch.manual_seed(0)
    net = workload.model()
    optimizer = workload.optimizer(net.parameters(), learning_rate)
    data, held_out, met, done = workload.train_data(), workload.eval_data(), 0, 0
    while met < 2 and done < workload.target.max_examples:
        for batch in torch.randperm(len(data)).split(global_batch):
            optimizer.zero_grad()
            workload.loss(net, data[batch]).backward()
            optimizer.step()
        done += len(data)
        with torch.no_grad():
            accuracy = float(workload.metric(net, held_out[:]))
        met = met + 1 if workload.target.is_met(accuracy) else 0
    assert met == 2, f"{accuracy:.3f} after {done} examples"
