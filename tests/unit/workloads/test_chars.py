import math

import pytest
import torch

from scaler.errors import BadInput
from scaler.workload import load_workload
from scaler.workloads import chars


@pytest.fixture(scope="module")
def workload():
    return load_workload("chars")


def test_windows_have_the_stated_sizes_and_form(workload):
    for data, examples in ((workload.train_data(), 21_093), (workload.eval_data(), 200)):
        for part in data.tensors:
            assert part.shape == (examples, 64) and part.dtype == torch.int64
            assert part.min() >= 0 and part.max() < 128


def test_targets_are_the_next_characters(workload):
    tokens, targets = workload.train_data().tensors
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert torch.equal(targets[:-1, -1], tokens[1:, 0])


def test_held_out_text_comes_after_the_training_text(workload):
    text = torch.tensor(list(chars._text()))
    assert len(text) == chars.TEXT_CHARACTERS
    tokens = workload.train_data().tensors[0].flatten()
    assert torch.equal(tokens, text[: len(tokens)])
    assert torch.equal(workload.eval_data().tensors[0][0], text[1_350_000:1_350_064])


def test_split_is_the_same_each_time_whatever_the_seed(workload):
    before = workload.eval_data().tensors
    chars._split.cache_clear()
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(before, workload.eval_data().tensors, strict=True))


def test_characters_outside_ascii_become_question_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(chars, "_MODULES", "one two")
    monkeypatch.setattr(chars.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    (tmp_path / "one.py").write_bytes("é = 1".encode())
    (tmp_path / "two.py").write_bytes(b"\xff")
    assert chars._text() == b"? = 1\n?"


def test_python_without_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr(chars.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(BadInput, match=r"has no argparse\.py, ast\.py") as caught:
        chars._text()
    assert "source files" in caught.value.hint


def test_loss_is_a_finite_scalar_with_gradient(workload):
    net = workload.model()
    value = workload.loss(net, workload.train_data()[:4])
    value.backward()
    assert value.shape == () and torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_untrained_metric_is_near_that_of_a_guess(workload):
    torch.manual_seed(0)
    with torch.no_grad():
        value = float(workload.metric(workload.model(), workload.eval_data()[:50]))
    assert math.log(128) - 0.5 < value < math.log(128) + 1


def test_weight_counts_characters(workload):
    assert workload.weight(workload.train_data()[:3]) == 3 * 64


def test_sees_no_later_character(workload):
    net = workload.model().eval()
    tokens = workload.train_data()[:2][0]
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 128
    with torch.no_grad():
        assert torch.allclose(net(tokens)[:, :40], net(changed)[:, :40], atol=1e-5)
        assert not torch.allclose(net(tokens)[:, 40:], net(changed)[:, 40:], atol=1e-5)


def test_learns(workload):
    torch.manual_seed(0)
    net = workload.model()
    optimizer = workload.optimizer(net.parameters(), workload.reference.learning_rate)
    data = workload.train_data()
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        value = workload.loss(net, data[step * 32 : step * 32 + 32])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 1
