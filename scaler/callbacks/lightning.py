"""For a Lightning training: `Trainer(callbacks=[NoiseScaleCallback()])`, or PlanCallback."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scaler.callbacks.watch import PlanWatch, Use, base_rate
from scaler.decide.source import PlanSource
from scaler.errors import BadInput
from scaler.fit.noise import NoiseFit
from scaler.noise_scale import NoiseScale


class NoiseScaleCallback(Callback):
    """Watches the gradients; logs `noise_scale` at the end of every epoch in which it is identifiable.

    `micro_batch` is the number of examples of one pass on one rank; by default the train loader's batch size.
    """

    def __init__(self, micro_batch: int | None = None) -> None:
        self._micro_batch = micro_batch
        self._noise: NoiseScale | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch.

        Raises:
            BadInput: the batch size is not known, there are several optimizers, or as NoiseScale says.
        """
        model: Any = trainer.strategy.model  # as the strategy wrapped it
        self._noise = NoiseScale(
            model if model is not None else pl_module,
            self._one_optimizer(trainer),
            self._pass_examples(trainer),
            trainer.accumulate_grad_batches,
            getattr(trainer.precision_plugin, "scaler", None),
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scale."""
        pl_module.log_dict(self.figures(self.estimate()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        if self._noise is not None:
            self._noise.close()

    def estimate(self) -> NoiseFit:
        """Estimate the noise scale over the last 1,000 steps, in training or after it."""
        return self._noise.estimate() if self._noise is not None else NoiseFit()

    def figures(self, noise: NoiseFit) -> dict[str, float]:
        """Give what is logged."""
        return {} if noise.scale is None else {"noise_scale": noise.scale.value}

    def _pass_examples(self, trainer: Trainer) -> int:
        found = self._micro_batch or getattr(trainer.train_dataloader, "batch_size", None)
        if found is None:
            raise BadInput(
                "the train loader has no batch size",
                hint=f"give {type(self).__name__}(micro_batch=...)",
            )
        return int(found)

    def _one_optimizer(self, trainer: Trainer) -> Any:
        if len(trainer.optimizers) != 1:
            raise BadInput(
                f"{type(self).__name__} takes one optimizer, not {len(trainer.optimizers)}",
                hint="use scaler.NoiseScale for each in the module itself",
            )
        return trainer.optimizers[0]


class PlanCallback(NoiseScaleCallback):
    """Checks that a training uses a plan, and logs its throughput beside what was predicted.

    Watches the noise scale too, where gradients can be seen, and warns when the batch should change.
    `source`, `workers` and `strict`: as PlanWatch; `micro_batch`: as NoiseScaleCallback.

    Raises:
        BadInput: the source has no such plan.
    """

    def __init__(
        self,
        source: PlanSource,
        workers: int | None = None,
        strict: bool = True,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(micro_batch)
        self._watch = PlanWatch(source, workers, strict)
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the Trainer's settings against the plan.

        Raises:
            BadInput: they differ, and the callback is strict; or they are not known.
        """
        zero = getattr(trainer.strategy, "config", None) or {}
        self._watch.check(
            "Trainer",
            {
                "micro_batch": Use("the train loader's batch_size", self._pass_examples(trainer)),
                "accumulation": Use("accumulate_grad_batches", trainer.accumulate_grad_batches),
                "workers": Use("devices x num_nodes", trainer.world_size),
                "zero_stage": Use("DeepSpeed's stage", zero.get("zero_optimization", {}).get("stage", 0)),
                "learning_rate": Use("the optimizer's lr", base_rate(self._one_optimizer(trainer))),
            },
        )
        self._steps = trainer.global_step
        try:
            super().on_train_start(trainer, pl_module)
        except BadInput as why:
            self._watch.without_noise(why)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time of each optimizer step; log, and warn when the batch should change."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self._watch.step_done()
        if self._steps % trainer.log_every_n_steps == 0:
            noise = self.estimate()
            if trainer.is_global_zero:
                self._watch.judge(noise)
            pl_module.log_dict({**self.figures(noise), **self._watch.throughput()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing more: figures are logged every `log_every_n_steps`."""
