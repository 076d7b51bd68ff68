"""One rank of a training, as torchrun would start it: `python rank_driver.py FOLDER`; writes what it ended with."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from test_model_train import SETTINGS, phantoms, tiny

from model import distributed
from model.train import _Training, train

POISONED_STEP = 9


def main(folder: Path) -> None:
    """Train on two levels; rank 1 meets one batch that is not finite."""
    seen: dict[str, object] = {}
    learn, advance = _Training.learn_until_done, _Training._advance

    def recorded(self: _Training) -> str:
        ended_by = learn(self)
        digest = hashlib.sha256()
        for name, tensor in sorted(self.learner.snapshot().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        seen["state"] = digest.hexdigest()
        seen["skipped"] = self.guard.skipped
        seen["codes_started"] = self.learner.ready
        seen["batch"] = hashlib.sha256(self.sampler.batch(0).tobytes()).hexdigest()
        return ended_by

    def poisoned(self: _Training, batches: list, share: float) -> object:
        if self.step == POISONED_STEP and distributed.rank() == 1:
            batches = [batch * np.nan for batch in batches]
        return advance(self, batches, share)

    _Training.learn_until_done, _Training._advance = recorded, poisoned  # type: ignore[method-assign,assignment]
    config = tiny(steps=14, levels=2, codebook_size=32)
    result = train(phantoms(4), {}, config, SETTINGS, folder / "work", 600.0, models=folder / "models")
    seen |= {"model": result.model, "steps": result.steps, "rank": distributed.rank(), "world": distributed.world()}
    distributed.leave()
    (folder / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
