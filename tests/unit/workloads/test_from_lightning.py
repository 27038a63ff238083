"""A LightningModule's own step, optimizer and metric."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from scaler.batch import BatchPlan
from scaler.engine.data import load_data, load_train_data, rank_steps
from scaler.engine.engine import evaluate
from scaler.engine.open import open_engine
from scaler.errors import BadInput, WorkloadError

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

from library_cases import Net, Points, points  # noqa: E402

PLAN = BatchPlan.equal(256, 1, 1)


def opened(workload, rank, rate=0.1):
    return open_engine(workload, PLAN, rank, rate, seed=3)


def flat(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def test_a_step_is_the_trainers(rank, tmp_path):
    from lightning.pytorch import Trainer

    workload = points(max_grad_norm=0.5)
    engine = opened(workload, rank)
    steps = rank_steps(workload, load_train_data(workload, 256), PLAN, 0, seed=0)
    engine.step(next(steps), 1.0)
    torch.manual_seed(3)
    net, data = Net(), Points()
    data.setup("fit")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(net, DataLoader(data.train, batch_size=256))
    assert torch.allclose(flat(engine.module), flat(net), atol=1e-6)


def test_the_metric_is_what_validation_logs(rank):
    workload = points()
    engine = opened(workload, rank)
    x, y = load_data(workload, "eval_data")[:]
    expected = (engine.module.net(x) - y).square().mean().item()
    for batch in (64, 7):
        found = evaluate(workload, engine.module, load_data(workload, "eval_data"), rank, batch)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_torchmetrics_metric_is_taken_batch_by_batch(rank):
    from torchmetrics import MeanSquaredError

    class Measured(Net):
        def __init__(self):
            super().__init__()
            self.error = MeanSquaredError()

        def validation_step(self, batch):
            self.error.update(self(batch[0]), batch[1])
            self.log("val_loss", self.error)

    plain, measured = (points(module) for module in (Net, Measured))
    data = load_data(plain, "eval_data")
    found, expected = (evaluate(w, opened(w, rank).module, data, rank, 16) for w in (measured, plain))
    assert found == pytest.approx(expected, rel=1e-5)


def test_checkpoints_have_the_modules_own_keys():
    net = points().model()
    assert list(net.state_dict()) == list(Net().state_dict())
    net.load_state_dict(Net().state_dict())


def test_groups_keep_their_ratio_to_the_first(rank):
    def make(net):
        first, *others = net.parameters()
        return torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 0.01}], lr=0.1)

    workload = points(lambda: Net(make))
    rates = [group["lr"] for group in opened(workload, rank, rate=0.4).optimizer.param_groups]
    assert rates == pytest.approx([0.4, 0.04])


def scheduled(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)]


def test_a_scheduler_is_named_and_left_out(rank):
    workload = points(lambda: Net(scheduled))
    with pytest.warns(UserWarning, match="scheduler is not used"):
        (group,) = opened(workload, rank, rate=0.4).optimizer.param_groups
    assert group["lr"] == 0.4


def two(net):
    return [torch.optim.SGD([p], lr=0.1) for p in list(net.parameters())[:2]]


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Clipping(Net):
    def optimizer_step(self, *args, **kwargs):
        raise AssertionError


class Attached(Net):
    def training_step(self, batch):
        return self.trainer.estimated_stepping_batches


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: Net(two), "configures 2 optimizers"),
        (lambda: Net(lambda net: None), "raised MisconfigurationException"),
        (ByHand, "ByHand optimizes by hand"),
        (Clipping, "Clipping overrides optimizer_step"),
        (lambda: nn.Linear(1, 1), "returned Linear"),
        (Attached, "Attached is not attached to a `Trainer`"),
    ],
)
def test_modules_that_need_a_trainer_are_refused(rank, module, says):
    workload = points(module)
    with pytest.raises(BadInput, match=says):
        engine = opened(workload, rank)
        engine.step(next(rank_steps(workload, load_train_data(workload, 256), PLAN, 0, seed=0)), 1.0)


def loaders(train=None, val=None, **hooks):
    def make():
        made = type("Own", (Points,), hooks)()
        made.setup("fit")
        if train is not None:
            made.train_dataloader = lambda: train(made.train)
        if val is not None:
            made.val_dataloader = lambda: val(made.val)
        return made

    return make


@pytest.mark.parametrize(
    ("datamodule", "says"),
    [
        (loaders(train=lambda data: {"a": DataLoader(data)}), "returned dict, not one DataLoader"),
        (loaders(train=lambda data: DataLoader(data, batch_size=None)), "not one DataLoader"),
        (
            loaders(train=lambda data: DataLoader(data, sampler=WeightedRandomSampler([1.0] * 256, 256))),
            "samples by WeightedRandomSampler",
        ),
        (loaders(val=lambda data: DataLoader(data, collate_fn=list)), "another collate_fn each"),
        (loaders(on_after_batch_transfer=lambda *_: None), "Own overrides on_after_batch_transfer"),
    ],
)
def test_loaders_that_scaler_cannot_follow_are_refused(datamodule, says):
    with pytest.raises(BadInput, match=says):
        load_data(points(datamodule=datamodule), "train_data")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(BadInput) as raised:
        points()
    assert "scaler[lightning]" in raised.value.hint


def test_a_metric_that_is_not_logged_names_those_that_are(rank):
    workload = points(metric="val_los")
    with pytest.raises(BadInput, match="did you mean 'val_loss'") as raised:
        evaluate(workload, opened(workload, rank).module, load_data(workload, "eval_data"), rank, 16)
    assert "val_worst" in raised.value.hint and not isinstance(raised.value, WorkloadError)
