"""The gradient noise scale in a Hugging Face Trainer: `trainer.add_callback(NoiseScaleCallback(trainer))`."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scaler.fit.noise import NoiseFit
from scaler.noise_scale import NoiseScale


class NoiseScaleCallback(TrainerCallback):
    """Watches the gradients of a Trainer; each log line gets `noise_scale` while it is identifiable."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._noise: NoiseScale | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to watch.

        Raises:
            BadInput: as NoiseScale says.
        """
        optimizer = self._trainer.optimizer
        self._noise = NoiseScale(
            self._trainer.model_wrapped,  # with DDP, unlike the callback's own `model`
            getattr(optimizer, "optimizer", optimizer),  # accelerate wraps it
            args.train_batch_size,
            args.gradient_accumulation_steps,
            self._trainer.accelerator.scaler,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the scale to the log line and to the trainer's history."""
        scale = self.estimate().scale
        if scale is not None and logs is not None and "loss" in logs:
            for line in (logs, state.log_history[-1]):
                line["noise_scale"] = scale.value

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        if self._noise is not None:
            self._noise.close()

    def estimate(self) -> NoiseFit:
        """Estimate the noise scale over the last 1,000 steps, in training or after it."""
        return self._noise.estimate() if self._noise is not None else NoiseFit()
