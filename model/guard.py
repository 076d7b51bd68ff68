"""What keeps one bad stretch from spoiling a training: steps that are not finite are skipped, spikes rolled back."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from typing import Any

from torch import Tensor

from archive.errors import InputError

log = logging.getLogger(__name__)

BAD_STEPS = 50  # steps in a row without a finite loss: give up
WINDOW = 100  # losses whose median is the usual one
FEWEST = 20  # losses before there is a usual one
SPIKE = 4.0  # times the usual loss
FAR = 50.0  # times the usual loss: one such step can undo hundreds, so it is not learned from
SPIKE_STEPS = 10  # in a row: a batch may be hard, ten are a training that has gone wrong
KEEP_STEPS = 100  # a state to go back to is kept this often
SLOWER = 0.5  # of the learning rate after each time
MOST_ROLLBACKS = 5  # then the loss is what it is


class Guard:
    """Watches the loss and holds a recent good state in memory.

    good: tensors of that state. rate: factor on the learning rate. skipped, rollbacks: counted for the metrics and the
    card. All of it goes into checkpoints, so that a resumed training does as the whole one would have done.
    """

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.good: dict[str, Tensor] = {}
        self.rate = 1.0
        self.skipped = self.rollbacks = self._bad = self._high = 0

    def keeps(self, step: int) -> bool:
        """Whether the state before this step should be kept."""
        return step % KEEP_STEPS == 0 and not self._high and not self._bad

    @property
    def most(self) -> float:
        """The largest loss to learn from."""
        return FAR * statistics.median(self.losses) if len(self.losses) >= FEWEST else math.inf

    def spiked(self, loss: float | None, *, far: bool = False) -> bool:
        """Take in the loss of a step (None: skipped, as not finite or far above `most`); True: go back to the good state.

        Raises InputError NON_FINITE after fifty steps in a row that were not finite.
        """
        if loss is None:
            self.skipped += 1
            if far:
                return self._went_up()
            self._bad += 1
            if self._bad > BAD_STEPS:
                raise InputError("NON_FINITE", "the loss stays not finite; the model cannot learn from this")
            return False
        self._bad = 0
        if len(self.losses) >= FEWEST and loss > SPIKE * statistics.median(self.losses):
            return self._went_up()
        self._high = 0
        self.losses.append(loss)
        return False

    def _went_up(self) -> bool:
        self._high += 1
        if self._high < SPIKE_STEPS:
            return False
        if self.rollbacks < MOST_ROLLBACKS and self.good:
            return True
        self.forget()  # nowhere to go back to: the loss is what it is
        return False

    def rolled_back(self, step: int) -> None:
        """The good state is in place again: go on slower."""
        self.rollbacks += 1
        self.rate *= SLOWER
        log.warning(
            "step %d: the loss went up and stayed; the training goes on from a good state, at %.3g of the rate",
            step,
            self.rate,
        )
        self.forget()

    def forget(self) -> None:
        """The loss means something else from here on (the codebooks have started)."""
        self.losses.clear()
        self._high = 0

    def state(self) -> dict[str, Any]:
        """Numbers for a checkpoint; `good` goes with its tensors."""
        numbers = {"rate": self.rate, "skipped": self.skipped, "rollbacks": self.rollbacks}
        return {**numbers, "losses": list(self.losses), "bad": self._bad, "high": self._high}

    def load(self, state: dict[str, Any], good: dict[str, Tensor]) -> None:
        """What `state` gave."""
        self.losses = deque(state["losses"], maxlen=WINDOW)
        self.rate, self.skipped, self.rollbacks = state["rate"], state["skipped"], state["rollbacks"]
        self._bad, self._high, self.good = state["bad"], state["high"], good
