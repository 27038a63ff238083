"""A real Hugging Face Trainer on a tiny model, where transformers is installed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scaler.batch import BatchPlan
from scaler.errors import BadInput

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x, y):
        return {"loss": F.mse_loss(self.out(self.hidden(x).tanh()), y)}


@pytest.fixture
def train(tmp_path):
    """A function that trains an epoch and gives the callback and the trainer."""
    from transformers import Trainer, TrainingArguments

    from scaler.callbacks.hugging_face import NoiseScaleCallback

    def run(accumulation=4, examples=1024, make=NoiseScaleCallback):
        torch.manual_seed(0)
        x = torch.randn(examples, 4)
        y = x.sum(dim=1, keepdim=True) + torch.randn(examples, 1)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            learning_rate=1e-3,
            max_grad_norm=1e-3,
            logging_steps=16,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            Net(), arguments, train_dataset=[{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
        )
        callback = make(trainer)
        trainer.add_callback(callback)
        trainer.train()
        return callback, trainer

    return run


def test_every_step_is_seen_whatever_clips_it_afterwards(train):
    callback, trainer = train()
    found = callback.estimate()
    assert (found.steps, found.left_out_steps, found.miscounted_steps) == (32, 0, 0)
    assert 1 < found.scale.value < 100
    assert list(found.groups) == ["group 0", "group 1"]  # with weight decay, without
    logged = [line["noise_scale"] for line in trainer.state.log_history if "noise_scale" in line]
    assert logged[-1] == pytest.approx(found.scale.value)


def test_a_last_step_of_fewer_passes_is_left_out(train):
    found = train(examples=1040)[0].estimate()  # 130 passes
    assert (found.steps, found.miscounted_steps) == (32, 1)


def test_one_pass_a_step_is_refused(train):
    with pytest.raises(BadInput, match="one gradient a step"):
        train(accumulation=1)


def by_plan(plan):
    from scaler.callbacks.hugging_face import PlanCallback

    return lambda trainer: PlanCallback(trainer, plan)


def test_a_trainer_that_uses_the_plan_logs_throughput_and_noise(train):
    callback, trainer = train(make=by_plan(BatchPlan.equal(8, 4, 1)))
    assert callback.estimate().steps == 32
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert all(line["samples_per_s"] > 0 for line in logged) and logged[-1]["noise_scale"] > 1


def test_a_trainer_that_does_not_is_refused(train):
    with pytest.raises(BadInput, match="accumulation: the plan has 2, gradient_accumulation_steps is 4"):
        train(make=by_plan(BatchPlan.equal(8, 2, 1)))
