"""The gradient noise scale of a Lightning training: `Trainer(callbacks=[NoiseScaleCallback()])`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

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
        micro_batch = self._micro_batch or getattr(trainer.train_dataloader, "batch_size", None)
        if micro_batch is None:
            raise BadInput(
                "the train loader has no batch size",
                hint="give NoiseScaleCallback(micro_batch=...)",
            )
        if len(trainer.optimizers) != 1:
            raise BadInput(
                f"NoiseScaleCallback takes one optimizer, not {len(trainer.optimizers)}",
                hint="use scaler.NoiseScale for each in the module itself",
            )
        model: Any = trainer.strategy.model  # as the strategy wrapped it
        self._noise = NoiseScale(
            model if model is not None else pl_module,
            trainer.optimizers[0],
            micro_batch,
            trainer.accumulate_grad_batches,
            getattr(trainer.precision_plugin, "scaler", None),
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scale."""
        scale = self.estimate().scale
        if scale is not None:
            pl_module.log("noise_scale", scale.value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        if self._noise is not None:
            self._noise.close()

    def estimate(self) -> NoiseFit:
        """Estimate the noise scale over the last 1,000 steps, in training or after it."""
        return self._noise.estimate() if self._noise is not None else NoiseFit()
