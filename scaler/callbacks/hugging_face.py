"""For a Hugging Face Trainer: `trainer.add_callback(NoiseScaleCallback(trainer))`, or PlanCallback."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scaler.callbacks.watch import PlanWatch, Use, base_rate
from scaler.decide.source import PlanSource
from scaler.errors import BadInput
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
        self._noise = NoiseScale(
            self._trainer.model_wrapped,  # with DDP, unlike the callback's own `model`
            self._optimizer(),
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
        """Add the figures to the log line and to the trainer's history."""
        if logs is not None and "loss" in logs:
            figures = self.figures(self.estimate())
            for line in (logs, state.log_history[-1]):
                line.update(figures)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        if self._noise is not None:
            self._noise.close()

    def estimate(self) -> NoiseFit:
        """Estimate the noise scale over the last 1,000 steps, in training or after it."""
        return self._noise.estimate() if self._noise is not None else NoiseFit()

    def figures(self, noise: NoiseFit) -> dict[str, float]:
        """Give what each log line gets."""
        return {} if noise.scale is None else {"noise_scale": noise.scale.value}

    def _optimizer(self) -> Any:
        optimizer = self._trainer.optimizer
        return getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it


class PlanCallback(NoiseScaleCallback):
    """Checks that a Trainer uses a plan, and logs its throughput beside what was predicted.

    Watches the noise scale too, where gradients can be seen, and warns when the batch should change.
    `source`, `workers` and `strict`: as PlanWatch.

    Raises:
        BadInput: the source has no such plan.
    """

    def __init__(
        self, trainer: Trainer, source: PlanSource, workers: int | None = None, strict: bool = True
    ) -> None:
        super().__init__(trainer)
        self._watch = PlanWatch(source, workers, strict)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hold the Trainer's settings against the plan.

        Raises:
            BadInput: they differ, and the callback is strict.
        """
        plugin = self._trainer.accelerator.state.deepspeed_plugin
        self._watch.check(
            "Trainer",
            {
                "micro_batch": Use("per_device_train_batch_size", args.train_batch_size),
                "accumulation": Use("gradient_accumulation_steps", args.gradient_accumulation_steps),
                "workers": Use("the number of processes", args.world_size),
                "zero_stage": Use("DeepSpeed's stage", plugin.zero_stage if plugin is not None else 0),
                "learning_rate": Use("learning_rate", base_rate(self._optimizer())),
            },
        )
        try:
            super().on_train_begin(args, state, control, **kwargs)
        except BadInput as why:
            self._watch.without_noise(why)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        self._watch.step_done()

    def figures(self, noise: NoiseFit) -> dict[str, float]:
        """Give what each log line gets, and warn when the batch should change."""
        if self._trainer.is_world_process_zero():
            self._watch.judge(noise)
        return {**super().figures(noise), **self._watch.throughput()}
