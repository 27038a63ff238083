"""Workloads from a Hugging Face model, its data sets and TrainingArguments, as they are."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from scaler.batch import BatchPlan
from scaler.errors import BadInput
from scaler.workload import Precision, Reference, Target, Workload
from scaler.workloads.stepping import Stepping, loss

_REFUSED = (
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "optim_target_modules",
    "use_liger_kernel",
    "torch_compile",
    "deepspeed",
    "fsdp",
    "parallelism_config",
)
"""Arguments that change what a step is, and that only a Trainer does."""


def from_hugging_face(
    model: Callable[[], Any],
    train_dataset: Callable[[], Any],
    eval_dataset: Callable[[], Any],
    args: Any,
    *,
    target: Target,
    workers: int = 1,
    data_collator: Callable[[list[Any]], Any] | None = None,
    name: str = "hugging-face",
    **fields: Any,
) -> Workload:
    """Make a workload of what a Trainer takes; model and data are built where they are needed.

    The loss is the model's own, weighted by the labels it is a mean over; the metric is the same on the
    evaluation data. `args`, TrainingArguments, give the optimizer with its groups, clipping, precision,
    checkpointing of activations, and the reference: its batch on `workers` processes, its rate and warm-up.
    `fields` are any of Workload's, in place of what this makes: `metric` and `weight` (of a batch as the
    collator makes it), `schedule`, `worst_case`.

    Raises:
        BadInput: transformers is not installed, or `args` ask for what scaler does not do; names all of it.
    """
    _transformers()
    _check(args, "schedule" in fields)
    source = _Source(model, args, data_collator)
    made: dict[str, Any] = {
        "name": name,
        "model": source.build,
        "train_data": train_dataset,
        "eval_data": eval_dataset,
        "collate": source.collate,
        "loss": loss,
        "metric": loss,
        "weight": source.weight,
        "optimizer": lambda net, rate: _optimizer(net.net, args, rate),
        "optimizer_takes_module": True,
        "max_grad_norm": args.max_grad_norm or None,
        "precision": _precision(args),
        "find_unused_parameters": bool(args.ddp_find_unused_parameters),
        "target": target,
        "reference": _reference(args, workers, train_dataset),
    }
    return Workload(**{**made, **fields})


class _Model(Stepping):
    """A model that returns its own loss."""

    def forward(self, batch: Any) -> torch.Tensor:
        """Give the model's loss of a batch."""
        outputs = self.net(**batch)
        loss: torch.Tensor = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        return loss


class _Source:
    """Builds the model, and remembers of it what batches depend on."""

    def __init__(
        self, model: Callable[[], Any], args: Any, collator: Callable[[list[Any]], Any] | None
    ) -> None:
        self._model = model
        self._args = args
        self._collator = collator
        self._columns: frozenset[str] | None = None
        self._shifts = False

    def build(self) -> _Model:
        """Build the model."""
        net = self._model()
        if getattr(self._args, "activation_checkpointing", None) or self._args.gradient_checkpointing:
            _checkpoint_activations(net, self._args)
        self._columns = _columns(net, self._args)
        self._shifts = _shifts_labels(net)
        return _Model(net)

    def collate(self, examples: list[Any]) -> Any:
        """Make a batch, without the columns that the model does not take."""
        if self._columns is None:
            self.build()
        columns = self._columns or frozenset()
        if self._args.remove_unused_columns and isinstance(examples[0], Mapping):
            if not columns & examples[0].keys():
                raise BadInput(
                    f"none of the columns {', '.join(examples[0])} is an argument of the model's forward()",
                    hint="rename them, or give remove_unused_columns=False with a data_collator",
                )
            examples = [{k: v for k, v in example.items() if k in columns} for example in examples]
        batch = (self._collator or _transformers().default_data_collator)(examples)
        return dict(batch) if isinstance(batch, Mapping) else batch  # a BatchEncoding hides its tensors

    def weight(self, batch: Any) -> float:
        """Count what the loss is a mean over: labels that are not -100, or examples.

        A causal model predicts each label from the tokens before it: the first of a row from none.
        """
        labels = batch.get("labels")
        if labels is None or labels.dim() < 2:
            return float(len(next(v for v in batch.values() if isinstance(v, torch.Tensor))))
        counted = labels[..., 1:] if self._shifts else labels
        return float((counted != -100).sum())


def _columns(net: Any, args: Any) -> frozenset[str]:
    from transformers.utils import find_labels

    labels = find_labels(type(net)) if args.label_names is None else args.label_names
    return frozenset([*inspect.signature(net.forward).parameters, "label", "label_ids", *labels])


def _shifts_labels(net: Any) -> bool:
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = {base.__name__ for base in type(net).__mro__}
    causal = bool(names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
    causal |= LOSS_MAPPING.get(getattr(net, "loss_type", None)) is ForCausalLMLoss
    return causal and not getattr(getattr(net, "config", None), "is_encoder_decoder", False)


def _checkpoint_activations(net: Any, args: Any) -> None:
    if hasattr(net, "activation_checkpointing_enable"):
        given = dict(getattr(args, "activation_checkpointing_kwargs", None) or {})
        own = {key: given.pop(key) for key in ("every_n_layers", "offload") if key in given}
        net.activation_checkpointing_enable(activation_checkpointing_kwargs=given or None, **own)
    else:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)


def _optimizer(net: Any, args: Any, learning_rate: float) -> torch.optim.Optimizer:
    trainer = _transformers().Trainer
    make, options = trainer.get_optimizer_cls_and_kwargs(args, net)
    own_groups = {"params", "model", "optimizer_dict"} & options.keys()
    if own_groups or not (isinstance(make, type) and issubclass(make, torch.optim.Optimizer)):
        raise BadInput(
            f"optim={args.optim} is an optimizer that takes more than parameters",
            hint="give from_hugging_face(optimizer=...) a function (model, learning rate)",
        )
    decayed = set(trainer.get_decay_parameter_names(None, net))
    groups = [
        {
            "params": [p for n, p in net.named_parameters() if (n in decayed) is decays and p.requires_grad],
            "weight_decay": args.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    optimizer: torch.optim.Optimizer = make(groups, **{**options, "lr": learning_rate})
    return optimizer


def _reference(args: Any, workers: int, train_dataset: Callable[[], Any]) -> Reference:
    plan = BatchPlan.equal(args.per_device_train_batch_size, args.gradient_accumulation_steps, workers)
    steps = args.max_steps
    if steps <= 0 and 0 < args.warmup_steps < 1:  # a share of the training
        steps = math.ceil(len(train_dataset()) / plan.global_batch * args.num_train_epochs)
    warmup_steps = int(args.get_warmup_steps(steps))
    return Reference(plan.global_batch, args.learning_rate, warmup_steps * plan.global_batch)


def _precision(args: Any) -> Precision:
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def _check(args: Any, has_schedule: bool) -> None:
    refused = [f"{name}={value!r}" for name in _REFUSED if (value := getattr(args, name, None))]
    if refused:
        raise BadInput(
            f"TrainingArguments ask for what scaler does not train with: {', '.join(refused)}",
            hint="leave it out for tuning; ZeRO is `scaler tune --zero`",
        )
    unused = []
    if not has_schedule and not args.lr_scheduler_type.value.startswith("constant"):
        unused.append(
            f"lr_scheduler_type={args.lr_scheduler_type.value!r}: trials warm up, then stay constant "
            "(from_hugging_face(schedule=...) gives another)"
        )
    strategy = getattr(args, "train_sampling_strategy", "random")
    if strategy != "random":
        unused.append(f"train_sampling_strategy={strategy!r}: permutations are drawn at random")
    for what in unused:
        warnings.warn(f"TrainingArguments: not used: {what}", stacklevel=3)


def _transformers() -> Any:
    try:
        import accelerate  # noqa: F401  a Trainer needs it
        import transformers
    except ImportError:
        raise BadInput(
            "workloads from Hugging Face need transformers and accelerate",
            hint="pip install 'scaler[transformers]' on every node",
        ) from None
    return transformers
