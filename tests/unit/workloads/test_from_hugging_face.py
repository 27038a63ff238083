"""What a Hugging Face Trainer would train, from the same arguments."""

import sys

import pytest
import torch
from torch import nn

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.errors import BadInput

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("lightning")  # the cases are of both
pytestmark = pytest.mark.filterwarnings("ignore")

from library_cases import arguments, counting, gpt2, rows  # noqa: E402

PLAN = BatchPlan.equal(8, 2, 1)


def flat(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def dense():
    """Rows in which every label counts but the first, which a causal model does not predict."""
    return [{**row, "labels": torch.where(torch.arange(8) > 0, row["input_ids"], -100)} for row in rows(16)]


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_a_step_is_the_trainers(rank, optim, tmp_path):
    from transformers import Trainer

    args = arguments(
        output_dir=str(tmp_path),
        optim=optim,
        lr_scheduler_type="constant",
        warmup_steps=0,
        per_device_train_batch_size=8,
        max_steps=1,
    )
    workload = counting(args)
    assert (workload.reference.global_batch, workload.reference.warmup_examples) == (16, 0)
    engine = open_engine(workload, PLAN, rank, args.learning_rate, seed=3)
    data = dense()  # one global batch: its order does not matter
    engine.step([workload.collate(data[:8]), workload.collate(data[8:])], 1.0)
    torch.manual_seed(3)
    trainer = Trainer(gpt2(), args, train_dataset=dense())
    trainer.train()
    assert torch.allclose(flat(engine.module), flat(trainer.model), atol=1e-6)
    ours, theirs = engine.optimizer.param_groups, trainer.optimizer.param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in ours] == [
        (g["weight_decay"], len(g["params"])) for g in theirs
    ]


def test_the_weight_counts_the_labels_that_are_predicted():
    workload = counting()
    net = workload.model()
    batch = workload.collate(rows(5))
    assert set(batch) == {"input_ids", "labels"}
    targets = batch["labels"][:, 1:]
    logits = net.net(batch["input_ids"]).logits[:, :-1]
    total = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert workload.weight(batch) == (targets != -100).sum()
    assert (workload.loss(net, batch) * workload.weight(batch)).item() == pytest.approx(
        total.item(), rel=1e-5
    )


def test_labels_of_examples_weigh_as_examples():
    workload = counting()
    workload.model()
    assert workload.weight({"input_ids": torch.zeros(3, 8), "labels": torch.zeros(3)}) == 3
    assert workload.weight({"input_ids": torch.zeros(4, 8)}) == 4


def test_the_reference_is_the_arguments():
    workload = counting(arguments(), workers=3)
    assert workload.reference.global_batch == 4 * 2 * 3
    assert workload.reference.learning_rate == 0.01
    assert workload.reference.warmup_examples == 3 * 24
    share = counting(arguments(warmup_steps=0.25, num_train_epochs=2)).reference
    assert share.warmup_examples == 4 * 8  # a quarter of 16 steps of 8
    assert (workload.precision, workload.max_grad_norm) == ("fp32", 0.5)
    assert counting(arguments(bf16=True)).precision == "bf16"
    assert counting(arguments(max_grad_norm=0.0)).max_grad_norm is None


def test_activations_are_checkpointed_as_asked(rank):
    workload = counting(arguments(gradient_checkpointing=True))
    net = workload.model()
    assert net.net.is_gradient_checkpointing
    engine = open_engine(workload, PLAN, rank, 0.01, seed=3)
    engine.step(next(rank_steps(workload, load_train_data(workload, 16), PLAN, 0, seed=0)), 1.0)


def test_a_field_of_the_users_own_takes_precedence():
    assert counting(weight=lambda batch: 7.0).weight({}) == 7.0


def test_every_argument_that_is_not_trained_with_is_named():
    with pytest.raises(BadInput, match=r"label_smoothing_factor=0.1, neftune_noise_alpha=5.0"):
        counting(arguments(label_smoothing_factor=0.1, neftune_noise_alpha=5.0))


def test_a_schedule_that_is_not_used_is_named():
    decaying = arguments(lr_scheduler_type="cosine")
    with pytest.warns(UserWarning, match="lr_scheduler_type='cosine'"):
        counting(decaying)
    workload = counting(decaying, schedule=lambda examples: 0.5)
    assert workload.learning_rate_factor(8, 0) == 0.5


def test_without_the_library_the_extra_is_named(monkeypatch):
    args = arguments()
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BadInput) as raised:
        counting(args)
    assert "scaler[transformers]" in raised.value.hint


def test_columns_that_fit_no_argument_are_refused():
    with pytest.raises(BadInput, match="none of the columns text"):
        counting().collate([{"text": "a"}, {"text": "b"}])
