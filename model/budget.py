"""How long a training lasts and how fast it learns at each point: by steps or epochs where given, else by the clock."""

from __future__ import annotations

import logging
import math
import time

from model.config import ModelConfig

log = logging.getLogger(__name__)

MOST_STEPS = 20_000  # where neither steps nor epochs are given
LEAST_STEPS = 20  # taken whatever the clock says: a model without any would be published as if it had learned
CLOCK_TAKES_OVER = 0.5  # of the time, after which steps that will not fit in it no longer decide


class Budget:
    """Steps and seconds of one training, earlier runs of it included.

    Given steps or epochs decide alone as long as they fit in the time, so a stopped and resumed training ends with the
    same weights. Where they do not fit, and where none are given, the share of the time decides, which no resumed run
    repeats exactly. epoch_steps: steps of one epoch. began: time.monotonic() of this run; spent: seconds of earlier ones.
    """

    def __init__(self, config: ModelConfig, seconds: float, epoch_steps: int, began: float) -> None:
        self.seconds, self.began, self.spent = seconds, began, 0.0
        self.epoch_steps, self.epochs = epoch_steps, config.epochs
        given = [config.steps, config.epochs * epoch_steps if config.epochs else None]
        limits = [steps for steps in given if steps is not None]
        self.steps = min(limits, default=MOST_STEPS)
        self.by_clock = not limits
        # Kept back for the last measuring, the coder's tables, drawing and saving, which look at the clock themselves.
        pictures = 2 if config.corrections else 1  # corrections have more for the tables to learn
        self.reserve = min(0.35 * seconds, 8.0 + 0.02 * seconds) + pictures * min(0.1 * seconds, 60.0)

    def elapsed(self) -> float:
        """Seconds spent on this training, earlier runs included."""
        return self.spent + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds until all of it must be done."""
        return self.seconds - self.elapsed()

    def share(self, step: int) -> float:
        """How much of the training is done before this step, 0 to 1; 1 and more: it is over."""
        by_steps = step / self.steps
        by_time = self.elapsed() / max(1e-9, self.seconds - self.reserve)
        if step < min(LEAST_STEPS, self.steps):
            by_time = min(by_time, 0.99)
        if not self.by_clock and by_time > max(CLOCK_TAKES_OVER, by_steps):
            self.by_clock = True
            log.warning(
                "the steps do not fit into the time: from step %d the clock sets the pace, and a repetition may differ; "
                "train.max_seconds gives more",
                step,
            )
        return max(by_steps, by_time) if self.by_clock else by_steps


def learning_rate(config: ModelConfig, step: int, share: float) -> float:
    """Linear warm-up by steps, then constant, or a cosine to nothing over the share of the training that is done."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.peak_rate * warm
    return config.peak_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
