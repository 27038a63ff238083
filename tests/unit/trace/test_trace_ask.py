"""Predictions in a process of their own: the same answer, faults as they are, and models that end it."""

import dataclasses

import pytest
from trace_cases import cluster, real_peak

from scaler.errors import BadInput, WorkloadError
from scaler.trace.ask import ask_prediction
from scaler.trace.predict import predict
from scaler.trace.shape import Shape
from scaler.workload import load_workload

ALONE = Shape(1)

digits = load_workload("digits")


def without_host(curve):
    """A curve without what its process had of the host."""
    bills = tuple(bill.model_copy(update={"host_items": {}}) for bill in curve.bills)
    return curve.model_copy(update={"bills": bills})


def test_asking_gives_what_predicting_gives():
    told = []
    shapes, where = [ALONE, Shape(2, 3, accumulating=True)], cluster(memory="1MiB")
    asked = ask_prediction(digits, where, shapes, largest=600, progress=lambda *done: told.append(done))
    found = predict(digits, where, shapes, None, 600)
    assert (asked.confidence, asked.notes) == (found.confidence, found.notes) == ("high", ())
    assert [without_host(curve) for curve in asked.curves] == [without_host(curve) for curve in found.curves]
    assert asked.curves[0].bills[0].host_items.keys() == found.curves[0].bills[0].host_items.keys()
    assert told == [(0, 2), (1, 2)]


FILE = """
import os, sys
import torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from scaler import Reference, Target, Workload

class Ending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)
    def forward(self, x):
        print(17)
        os._exit(3)

def loss(net, batch):
    return F.mse_loss(net(batch[0]), batch[1])

def data():
    print("loading")
    return TensorDataset(torch.zeros(64, 4), torch.zeros(64, 1))

def make(**fields):
    defaults = dict(
        name="file", model=lambda: nn.Linear(4, 1), train_data=data, eval_data=data, loss=loss, metric=loss,
        optimizer=lambda p, rate: torch.optim.SGD(p, rate),
        target=Target(0.1, "min"), reference=Reference(8, 0.1),
    )
    return Workload(**(defaults | fields))

plain, ending, faulty = make(), make(model=Ending), make(model=lambda: 1 // 0)
"""


@pytest.fixture
def from_file(tmp_path):
    """A function (name) that loads a workload of the file."""
    path = tmp_path / "workloads.py"
    path.write_text(FILE, encoding="utf-8")
    return lambda name: load_workload(f"{path}:{name}")


def test_what_the_users_code_prints_is_no_progress(from_file):
    told = []
    asked = ask_prediction(
        from_file("plain"), cluster(), [ALONE], [8], progress=lambda *done: told.append(done)
    )
    assert told == [(0, 1)]
    assert asked.curves[0].bills[0].peak_bytes == real_peak(from_file("plain"), 8)


def test_a_model_that_ends_the_process_has_no_curves_and_a_note(from_file):
    asked = ask_prediction(from_file("ending"), cluster(), [ALONE], [8])
    assert (asked.curves, asked.confidence) == ((), "low")
    (note,) = asked.notes
    assert "tracing ended with status 3" in note


def test_the_users_fault_arrives_as_it_is(from_file):
    with pytest.raises(WorkloadError, match=r"'file': model\(\) raised ZeroDivisionError") as caught:
        ask_prediction(from_file("faulty"), cluster(), [ALONE], [8])
    assert "workloads.py" in caught.value.message
    assert caught.value.hint


def test_bad_input_arrives_as_it_is():
    with pytest.raises(BadInput, match="without items") as caught:
        ask_prediction(dataclasses.replace(digits, train_data=list), cluster(), [ALONE], [8])
    assert type(caught.value) is BadInput
