"""A real Lightning Trainer on a tiny model, where Lightning is installed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from scaler.batch import BatchPlan
from scaler.errors import BadInput

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def train(tmp_path):
    """A function that trains for some epochs and gives the callback and the trainer."""
    from lightning.pytorch import LightningModule, Trainer

    from scaler.callbacks.lightning import NoiseScaleCallback

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch, _):
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    def run(accumulation=4, micro_batch=None, examples=512, epochs=3, callback=None, **loader):
        torch.manual_seed(0)
        x = torch.randn(examples, 4)
        data = TensorDataset(x, x.sum(dim=1, keepdim=True) + torch.randn(examples, 1))
        callback = callback or NoiseScaleCallback(micro_batch)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            accumulate_grad_batches=accumulation,
            gradient_clip_val=1e-3,
            callbacks=[callback],
            logger=False,
            log_every_n_steps=16,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Net(), DataLoader(data, batch_size=8, shuffle=True, **loader))
        return callback, trainer

    return run


def test_every_step_is_seen_whatever_clips_it_afterwards(train):
    callback, trainer = train()
    found = callback.estimate()
    assert (found.steps, found.left_out_steps, found.miscounted_steps) == (3 * 16, 0, 0)
    assert 1 < found.scale.value < 100
    assert list(found.groups) == ["0 (Linear)", "2 (Linear)"]
    assert trainer.callback_metrics["noise_scale"] == pytest.approx(found.scale.value, rel=1e-5)


def test_a_last_step_of_fewer_passes_is_left_out(train):
    found = train(examples=528, epochs=2)[0].estimate()  # 66 passes an epoch
    assert (found.steps, found.miscounted_steps) == (2 * 16, 2)


def test_one_pass_a_step_is_refused(train):
    with pytest.raises(BadInput, match="one gradient a step"):
        train(accumulation=1)


def test_a_training_that_uses_the_plan_logs_throughput_and_noise(train):
    from scaler.callbacks.lightning import PlanCallback

    callback, trainer = train(callback=PlanCallback(BatchPlan.equal(8, 4, 1)))
    assert callback.estimate().steps == 3 * 16
    assert trainer.callback_metrics["samples_per_s"] > 0
    assert trainer.callback_metrics["noise_scale"] > 1


def test_a_training_that_does_not_is_refused(train):
    from scaler.callbacks.lightning import PlanCallback

    with pytest.raises(BadInput, match="micro_batch: the plan has 16, the train loader's batch_size is 8"):
        train(callback=PlanCallback(BatchPlan.equal(16, 2, 1)))


def test_without_noise_the_plan_is_watched_all_the_same(train):
    from scaler.callbacks.lightning import PlanCallback

    with pytest.warns(UserWarning, match="noise scale is not watched"):
        _, trainer = train(accumulation=1, callback=PlanCallback(BatchPlan.equal(8, 1, 1)))
    assert trainer.callback_metrics["samples_per_s"] > 0
