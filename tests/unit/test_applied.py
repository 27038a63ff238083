"""scaler.apply: a user's own loop follows the gradient of the whole global batch, however it is spread."""

import itertools
import shutil
from pathlib import Path

import applied_ranks
import pytest
import torch
from applied_ranks import BATCH, EXAMPLES, LOSSES, PLANS, RATE, SEED, STEPS, network, sentences, train
from rank_processes import run_ranks, saved_by_ranks
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import scaler
from scaler.answers import report
from scaler.batch import BatchPlan
from scaler.decide.config import BatchConfig
from scaler.device import Device
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.errors import BadInput
from scaler.runtime.protocol import Rank
from scaler.workload import Reference, Target, Workload

RECORDED = Path(__file__).parents[1] / "recorded" / "digits-mock-2"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ended = run_ranks(applied_ranks.__file__, folder, 2, timeout_s=120)
    return saved_by_ranks(folder, [rank.output for rank in ended])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with its answers."""
    folder = tmp_path_factory.mktemp("run") / "RUN"
    shutil.copytree(RECORDED, folder)
    report(folder)
    return folder


def same(found, expected):
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


def whole(name):
    """By hand, on whole batches: 64 examples each of one permutation after the other."""
    loss, _ = LOSSES[name]
    net, data = network(), sentences()
    generator = torch.Generator().manual_seed(SEED)
    order = torch.cat([torch.randperm(EXAMPLES, generator=generator) for _ in range(3)])
    found = []
    for step in range(STEPS):
        batch = data[order[step * BATCH : (step + 1) * BATCH]]
        gradients = torch.autograd.grad(loss(net, batch), list(net.parameters()))
        found.append(torch.cat([g.flatten() for g in gradients]))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
        found.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    return torch.stack(found)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("micro_batch", "accumulation"), [(64, 1), (16, 4)])
def test_one_process_follows_the_whole_batch_across_epochs(name, micro_batch, accumulation):
    assert same(train(BatchPlan.equal(micro_batch, accumulation, 1), name), whole(name))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", PLANS)
def test_two_ranks_follow_the_whole_batch_across_epochs(ranks, name, spread):
    for rank in ranks:
        assert same(rank[name, spread], whole(name))


@pytest.mark.parametrize("name", LOSSES)
def test_the_engine_trains_the_same(name):
    loss, weight = LOSSES[name]
    workload = Workload(
        name=name,
        model=network,
        train_data=sentences,
        eval_data=sentences,
        loss=loss,
        metric=loss,
        weight=weight,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        target=Target(0.0, "min"),
        reference=Reference(global_batch=BATCH, learning_rate=RATE),
    )
    plan = BatchPlan.equal(16, 4, 1)
    engine = open_engine(workload, plan, Rank(0, 1, Device("cpu", None)), RATE, seed=0)
    steps = rank_steps(workload, load_train_data(workload, BATCH), plan, 0, seed=SEED)
    found = []
    for step in itertools.islice(steps, STEPS):
        engine.step(step, 1.0)
        found.append(nn.utils.parameters_to_vector(engine.module.parameters()).detach().clone())
    assert same(train(plan, name)[1::2], torch.stack(found))


def test_a_loader_with_options_draws_the_same():
    plan = BatchPlan.equal(16, 4, 1)
    assert torch.equal(train(plan, "tokens", pin_memory=False), train(plan, "tokens"))


def test_ranks_are_told_what_does_not_fit_them(ranks):
    for rank in ranks:
        assert "the plan is for 1 workers, and 2 train here" in rank["refusals"]["one"]
        assert "DistributedDataParallel" in rank["refusals"]["bare"]


# A run


def test_a_run_gives_its_answer_with_rate_and_warmup(run):
    answer = BatchConfig.load(run).answer_for(1)
    warmed = answer.model_copy(update={"warmup_examples": 10 * answer.plan.global_batch})
    applied = scaler.apply(warmed)
    optimizer = torch.optim.SGD(network().parameters(), lr=applied.learning_rate)
    schedule = applied.schedule(optimizer)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([answer.learning_rate * min(1, step / 10) for step in range(1, 13)])


def test_the_answer_for_these_ranks_is_taken_when_asked_for(run):
    config = BatchConfig.load(run)
    assert scaler.apply(run, workers=1).plan == config.answer_for(1).plan
    assert (
        scaler.apply(run / "batch-config.yaml", workers=1).learning_rate == config.answer_for(1).learning_rate
    )
    with pytest.raises(BadInput, match="the plan is for 2 workers, and 1 train here") as raised:
        scaler.apply(config.answer_for(2))
    assert "scaler.apply(RUN, workers=1)" in raised.value.hint
    with pytest.raises(BadInput, match="no answer for 7 workers") as raised:
        scaler.apply(config, workers=7)
    assert "1, 2" in raised.value.hint


def test_a_plan_alone_leaves_rate_and_schedule_to_the_user():
    applied = scaler.apply(BatchPlan.equal(8, 1, 1))
    optimizer = torch.optim.SGD(network().parameters(), lr=RATE)
    assert applied.schedule(optimizer).get_last_lr() == [RATE]
    with pytest.raises(BadInput, match="nothing of the learning rate"):
        _ = applied.learning_rate


# Bad input


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (BatchPlan.equal(8, 1, 1, zero_stage=2), "zero_stage: 2"),
        ("nowhere", "not a run folder"),
    ],
)
def test_what_cannot_be_applied_is_refused(source, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        scaler.apply(source)


def test_a_run_without_an_answer_says_so(tmp_path):
    (tmp_path / "launch.yaml").touch()
    with pytest.raises(BadInput, match="not decided yet"):
        scaler.apply(tmp_path)


def test_ranks_that_do_not_know_each_other_are_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="one of 2 ranks") as raised:
        scaler.apply(PLANS["equal"])
    assert "init_process_group" in raised.value.hint


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


@pytest.mark.parametrize(
    ("dataset", "options", "says"),
    [
        (Stream(), {}, "Stream is no data set with items"),
        (Empty(), {}, "Empty is no data set with items"),
        (range(7), {}, "7 examples, too few for one step: 8 "),
        (range(9), {"shuffle": True, "batch_size": 3}, "batch_size, shuffle"),
    ],
)
def test_what_the_plan_cannot_draw_from_is_refused(dataset, options, says):
    with pytest.raises(BadInput, match=says):
        scaler.apply(BatchPlan.equal(8, 1, 1)).loader(dataset, **options)


def test_a_loader_that_ends_within_a_step_is_refused():
    applied = scaler.apply(BatchPlan.equal(30, 3, 1))
    loader = DataLoader(sentences(), batch_size=30)  # four batches
    with pytest.raises(BadInput, match="ended in a step of 3 passes"):
        list(applied.steps(loader, network()))
