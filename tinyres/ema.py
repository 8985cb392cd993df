"""The moving average of a network's weights over training, which often tests better than the last weights do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tinyres.nn import Module, state_dict
from tinyres.ops.create import device_of
from tinyres.state import no_grad


class ExponentialMovingAverage:
    """A copy of `model` whose weights follow it: average <- d * average + (1 - d) * weight after every step.

    d is min(decay, (1 + t) / (10 + t)) after t updates, so that the weights of the start are soon forgotten. Running
    statistics of batch norm are averaged alike; counters are copied. Evaluate with `average.model`. Polyak and Juditsky
    (1992) averaged so; the exponential form and its warm-up are TensorFlow's. Raises ValueError unless 0 < decay < 1.
    """

    def __init__(self, model: Module, decay: float = 0.999):
        self.decay = float(decay)
        if not 0 < self.decay < 1:
            raise ValueError(f"ExponentialMovingAverage: decay must lie between 0 and 1, got {decay}: 0.999 averages "
                             "over about the last 1,000 steps")
        self.count = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._of = model

    def update(self) -> None:
        """Follow the model; call it after every optimizer.step()."""
        keep = min(self.decay, (1 + self.count) / (10 + self.count))
        averages, currents = list(state_dict.entries(self.model)), list(state_dict.entries(self._of))
        if [(name, t.shape) for name, t, _ in averages] != [(name, t.shape) for name, t, _ in currents]:
            raise ValueError(f"ExponentialMovingAverage: the model has other parts or shapes than when the average was "
                             f"made ({len(currents)} arrays now, {len(averages)} then): make a new average of it")
        places = [device_of(t) for _, t, _ in (*currents, *averages)]
        if len(set(places)) > 1:
            raise ValueError("ExponentialMovingAverage: the average is on one device and the model on another: move it "
                             f"too, average.model.to({places[0]!r})")
        self.count += 1
        done: set[int] = set()  # a module that is registered twice has its arrays under both names
        with no_grad():
            for (_, average, _), (_, current, _) in zip(averages, currents, strict=True):
                if id(average) in done:
                    continue
                done.add(id(average))
                if average.dtype.kind == "f":
                    average.data += (1 - keep) * (current.data - average.data)
                else:
                    average.data[...] = current.data

    def state_dict(self) -> dict[str, Any]:
        """{"arrays": the average's arrays by name, "scalars": {"decay", "count"}}."""
        return {"arrays": self.model.state_dict(), "scalars": {"decay": self.decay, "count": self.count}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from what state_dict() returned. Raises ValueError, and changes nothing, if it does not fit."""
        scalars = saved["scalars"]
        if not isinstance(scalars, Mapping) or not {"decay", "count"} <= scalars.keys():
            raise ValueError(f"ExponentialMovingAverage.load_state_dict: expected decay and count, got {scalars}: was "
                             "it saved without an average?")
        decay, count = scalars["decay"], scalars["count"]
        if not isinstance(decay, float) or not 0 < decay < 1 or not isinstance(count, int) or count < 0:
            raise ValueError(f"ExponentialMovingAverage.load_state_dict: decay is {decay!r} and count {count!r}, "
                             "expected a number between 0 and 1 and a count of steps: was it changed by hand?")
        self.model.load_state_dict(saved["arrays"])
        self.decay, self.count = decay, count
