"""The traced step of many small workloads beside the real engine's on a mock device, and its categories."""

import functools

import pytest
import torch
from torch import nn
from trace_cases import (
    FEATURES,
    TOKENS,
    WIDTH,
    Bag,
    Checkpointed,
    InPlace,
    Recurrent,
    Tied,
    Transformer,
    adagrad,
    adamw,
    convolutions,
    frozen,
    images,
    mlp,
    momentum,
    program,
    real_peak,
    sentences,
    sgd,
    softly,
    traced,
    workload,
)

from scaler.trace.step import Untraceable

SIZES = (1, 2, 5, 16, 61)  # 2 and 3 are traced
BATCH_NORMS = 2
COUNTER = 512  # a BatchNorm's: traced as a GPU would hold it; a mock device does not see torch.tensor(0)

fused = functools.partial(adamw, fused=True)
together = functools.partial(adamw, foreach=True)
one_by_one = functools.partial(adamw, foreach=False)
amsgrad = functools.partial(adamw, amsgrad=True)

CASES = {
    "sgd": workload(optimizer=sgd),
    "momentum": workload(optimizer=momentum),
    "adamw": workload(),
    "adagrad": workload(optimizer=adagrad),
    "fused": workload(optimizer=fused),
    "together": workload(optimizer=together),
    "one by one": workload(optimizer=one_by_one),
    "amsgrad": workload(optimizer=amsgrad),
    "embedding": workload(model=Bag, train_data=sentences),
    "transformer": workload(model=Transformer, train_data=sentences),
    "checkpointed": workload(model=lambda: Checkpointed(reentrant=False)),
    "checkpointed, reentrant": workload(model=lambda: Checkpointed(reentrant=True)),
    "tied": workload(model=Tied, train_data=sentences),
    "frozen": workload(model=frozen),
    "in place": workload(model=InPlace),
    "bf16": workload(precision="bf16"),
    "transformer, bf16": workload(model=Transformer, train_data=sentences, precision="bf16"),
    "checkpointed, bf16": workload(model=lambda: Checkpointed(reentrant=False), precision="bf16"),
    "fp16": workload(precision="fp16", loss=softly),
    "transformer, fp16": workload(model=Transformer, train_data=sentences, precision="fp16", loss=softly),
}
ACCUMULATING = ("momentum", "adamw", "transformer", "checkpointed", "in place", "transformer, bf16")


def steeply(net, batch):
    return softly(net, batch) * 1e6


@functools.cache
def line(name, accumulation=1):
    return program(CASES[name], accumulation)


def bytes_of(case, trained=False):
    return sum(p.nbytes for p in case.model().parameters() if p.requires_grad or not trained)


# Peaks


@pytest.mark.parametrize(
    ("name", "accumulation"), [(name, 1) for name in CASES] + [(name, 2) for name in ACCUMULATING]
)
def test_the_traced_peak_is_the_engines(name, accumulation):
    peaks = [line(name, accumulation).count(size).allocated_bytes for size in SIZES]
    assert peaks == [real_peak(CASES[name], size, accumulation) for size in SIZES]


@pytest.mark.parametrize(("accumulation", "precision"), [(1, "fp32"), (2, "fp32"), (1, "bf16")])
def test_the_traced_peak_of_convolutions_adds_the_counters_of_batch_norm(accumulation, precision):
    case = workload(model=convolutions, train_data=images, precision=precision)
    found = program(case, accumulation)
    for size in SIZES:
        expected = real_peak(case, size, accumulation) + BATCH_NORMS * COUNTER
        assert found.count(size).allocated_bytes == expected


def test_channels_last_takes_what_the_engine_takes():
    def model():
        return convolutions().to(memory_format=torch.channels_last)

    def collate(examples):
        x, y = zip(*examples, strict=True)
        return torch.stack(x).to(memory_format=torch.channels_last), torch.stack(y)

    case = workload(model=model, train_data=images, collate=collate)
    found = program(case)
    for size in SIZES:
        assert found.count(size).allocated_bytes == real_peak(case, size) + BATCH_NORMS * COUNTER


def test_more_than_two_passes_take_no_more_than_two():
    two, three = (program(CASES["momentum"], passes) for passes in (2, 3))
    for size in SIZES:
        assert two.count(size).allocated_bytes == three.count(size).allocated_bytes
        assert real_peak(CASES["momentum"], size, 3) == real_peak(CASES["momentum"], size, 2)


def test_a_probe_of_fp16_sees_the_optimizers_state():
    calm, steep = (workload(precision="fp16", loss=loss) for loss in (softly, steeply))
    assert real_peak(steep, 2) == real_peak(calm, 2) >= 4 * bytes_of(calm)


def test_what_recurrent_layers_reserve_is_noted():
    assert traced(workload(model=Recurrent, train_data=sentences), 2).notes


def test_sparse_gradients_are_no_prediction_rather_than_a_wrong_one():
    with pytest.raises(Untraceable, match=r"(?i)sparse"):
        traced(workload(model=lambda: Bag(sparse=True), train_data=sentences, optimizer=sgd), 2)


# Categories


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("sgd", 0),
        ("momentum", 1),
        ("adamw", 2),
        ("adagrad", 1),
        ("together", 2),
        ("one by one", 2),
        ("amsgrad", 3),
        ("embedding", 2),
        ("transformer", 2),
        ("tied", 2),
        ("frozen", 2),
        ("bf16", 2),
        ("fp16", 2),
    ],
)
def test_parameters_gradients_and_state_are_what_arithmetic_says(name, states):
    case = CASES[name]
    trained = bytes_of(case, trained=True)
    assert line(name).held_bytes("parameters") == bytes_of(case)
    assert line(name).held_bytes("gradients") == trained
    assert line(name).held_bytes("optimizer_state") == states * trained
    assert line(name).element_bytes == 4


def test_frozen_parameters_are_counted_once_and_tied_ones_too():
    assert bytes_of(CASES["frozen"], trained=True) < bytes_of(CASES["frozen"])
    assert line("tied").held_bytes("parameters") == TOKENS * WIDTH * 4


def test_a_fused_optimizers_step_counters_are_on_the_device():
    tensors = len(list(mlp().parameters()))
    assert line("fused").held_bytes("optimizer_state") == 2 * bytes_of(CASES["fused"]) + 4 * tensors


def test_buffers_count_as_parameters():
    assert line("in place").held_bytes("parameters") == bytes_of(CASES["in place"]) + 64 * 4


def test_16_bit_weights_have_16_bit_gradients_and_state():
    case = workload(model=lambda: mlp().bfloat16(), loss=lambda net, batch: net(batch[0].bfloat16()).mean())
    found = program(case)
    parameters = bytes_of(workload()) // 2
    assert found.element_bytes == 2
    held = [found.held_bytes(name) for name in ("parameters", "gradients", "optimizer_state")]
    assert held == [parameters, parameters, 2 * parameters]


def test_a_layer_more_keeps_one_more_activation():
    peaks = [program(workload(model=lambda depth=depth: mlp(128, depth), optimizer=sgd)) for depth in (2, 3)]
    shallow, deep = (found.count(512).items["activations"] for found in peaks)
    assert deep - shallow == 512 * 128 * 4


def test_checkpointing_keeps_less_and_computes_it_again():
    plain = workload(model=lambda: nn.Sequential(*mlp(96, 6)))
    kept = [program(case).count(512).items["activations"] for case in (plain, CASES["checkpointed"])]
    assert kept[1] < kept[0]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_items_add_up_to_what_is_allocated(accumulation):
    for size in SIZES:
        peak = line("adamw", accumulation).count(size)
        assert sum(peak.items.values()) == peak.allocated_bytes == peak.reserved_bytes


# What sets the peak


def test_many_parameters_and_one_example_peak_in_adam():
    peak = program(workload(model=lambda: mlp(512, 3), optimizer=together)).count(1)
    assert peak.regime == "optimizer"
    assert peak.items["temporaries"] > 0


@pytest.mark.parametrize("name", ["adamw", "transformer", "checkpointed", "bf16"])
def test_many_examples_peak_in_the_passes(name):
    peak = line(name).count(100_000)
    assert peak.regime in ("forward", "backward")
    assert peak.items["activations"] + peak.items["temporaries"] > 0.95 * peak.allocated_bytes


def test_without_a_hidden_layer_the_peak_is_where_the_loss_is():
    def loss(net, batch):
        return net(batch[0]).exp().mean()

    wide = workload(model=lambda: nn.Linear(FEATURES, 1), optimizer=sgd, loss=loss)
    assert program(wide).count(4096).regime == "forward"
