"""Learning rate schedules: each is a formula lr(count, base), applied to an optimizer's groups by step().

The numbers are PyTorch's, from its closed forms: a rate depends on the count of steps alone, so a resumed run gets the
same ones. Whether a step is a batch or an epoch is the caller's choice.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any


class Schedule:
    """Base of the schedules. Making one sets the rate of count 0; step() counts on and sets the next.

    A subclass gives lr(count, base), base being the group's rate when the schedule was made.
    """

    def __init__(self, optimizer: Any):
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"{type(self).__name__}: expected an optimizer, got {type(optimizer).__name__}: make the "
                            "optimizer first, and pass it")
        self.optimizer = optimizer
        self.base_lrs: list[float] = [float(group["lr"]) for group in optimizer.param_groups]
        self.count = 0
        self.apply()

    def lr(self, count: int, base: float) -> float:
        raise NotImplementedError(f"{type(self).__name__} has no formula: define lr(self, count, base)")

    def apply(self) -> None:
        """Set the rate of the present count in every group. Raises ValueError for a rate that is negative, NaN or
        infinite."""
        rates = [float(self.lr(self.count, base)) for base in self.base_lrs]
        for rate in rates:
            if not 0 <= rate < math.inf:
                raise ValueError(f"{type(self).__name__}: the learning rate of step {self.count} would be {rate}, "
                                 "expected a finite number of at least 0: look at the schedule's options")
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def step(self) -> None:
        """Go on to the next count; call it after optimizer.step()."""
        self.count += 1
        self.apply()

    def get_last_lr(self) -> list[float]:
        """The rates in force, one per group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold: the count and the base rates. The formula's constants are the constructor's business."""
        return {"schedule": type(self).__name__, "count": self.count, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from what state_dict() returned. Raises ValueError, and changes nothing, if it is another's."""
        name = type(self).__name__
        try:
            kind, count, bases = saved["schedule"], int(saved["count"]), [float(base) for base in saved["base_lrs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}.load_state_dict: this is not what state_dict() returned ({error!r})") from error
        if kind != name or len(bases) != len(self.base_lrs) or count < 0:
            raise ValueError(f"{name}.load_state_dict: the state is of {kind} with {len(bases)} groups at step "
                             f"{count}, this is {name} with {len(self.base_lrs)}: make the schedule as the saved one "
                             "was made")
        self.count, self.base_lrs = count, bases
        self.apply()


def _positive(schedule: str, name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{schedule}: {name} must be a positive int, got {value!r}")
    return value


def _finite(schedule: str, **options: Any) -> None:
    """Raise ValueError, naming the option, unless each is a finite number of at least 0."""
    for name, value in options.items():
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{schedule}: {name} must be a finite number of at least 0, got {value!r}")


class StepLR(Schedule):
    """base * gamma every `step_size` counts."""

    def __init__(self, optimizer: Any, step_size: int, gamma: float = 0.1):
        _finite("StepLR", gamma=gamma)
        self.step_size, self.gamma = _positive("StepLR", "step_size", step_size), gamma
        super().__init__(optimizer)

    def lr(self, count: int, base: float) -> float:
        return base * self.gamma ** (count // self.step_size)


class MultiStepLR(Schedule):
    """base * gamma at each milestone that was reached (He et al. 2015: 32k and 48k batches)."""

    def __init__(self, optimizer: Any, milestones: Sequence[int], gamma: float = 0.1):
        _finite("MultiStepLR", gamma=gamma)
        if not isinstance(milestones, (tuple, list)) or not all(hasattr(m, "__index__") and m >= 0 for m in milestones):
            raise ValueError("MultiStepLR: milestones must be a list of counts, integers of at least 0, got "
                             f"{milestones!r}: like [32_000, 48_000]")
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def lr(self, count: int, base: float) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, count)


class CosineAnnealingLR(Schedule):
    """From base to eta_min along half a cosine of T_max counts, and back after it (Loshchilov & Hutter 2017)."""

    def __init__(self, optimizer: Any, T_max: int, eta_min: float = 0.0):
        _finite("CosineAnnealingLR", eta_min=eta_min)
        self.T_max, self.eta_min = _positive("CosineAnnealingLR", "T_max", T_max), float(eta_min)
        super().__init__(optimizer)

    def lr(self, count: int, base: float) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * count / self.T_max)) / 2


class LinearWarmup(Schedule):
    """Warm up, then follow another schedule, or keep the base rate if an optimizer is given.

    In the first `steps` counts the rate goes linearly from start_factor * base to end_factor * base (equal factors: a
    constant low rate, as He et al. 2015 use for ResNet-110). The schedule that follows counts from 0 then, as in
    PyTorch's SequentialLR: take `steps` off its milestones or its length.
    """

    def __init__(self, then: Any, steps: int, start_factor: float = 0.1, end_factor: float = 1.0):
        if isinstance(then, OneCycleLR):
            raise ValueError("LinearWarmup: OneCycleLR has its own warm-up: use its pct_start")
        _finite("LinearWarmup", start_factor=start_factor, end_factor=end_factor)
        self.steps, self.start, self.end = _positive("LinearWarmup", "steps", steps), start_factor, end_factor
        self.then = then if isinstance(then, Schedule) else None
        super().__init__(then.optimizer if isinstance(then, Schedule) else then)
        if self.then is not None:
            self.base_lrs = list(self.then.base_lrs)
            self.apply()

    def lr(self, count: int, base: float) -> float:
        if count < self.steps:
            return base * (self.start + (self.end - self.start) * count / self.steps)
        return self.then.lr(count - self.steps, base) if self.then is not None else base


class OneCycleLR(Schedule):
    """Up to max_lr and down again in `total_steps` counts (Smith & Topin 2018); base rates are not used.

    The rate rises from max_lr / div_factor for pct_start of the counts, then falls to that start / final_div_factor;
    momentum (or Adam's first beta) goes the other way if `cycle_momentum`. anneal_strategy: "cos" or "linear".
    Raises ValueError for options out of range, and for a step beyond total_steps.
    """

    def __init__(self, optimizer: Any, max_lr: float, total_steps: int, pct_start: float = 0.3,
                 anneal_strategy: str = "cos", cycle_momentum: bool = True, base_momentum: float = 0.85,
                 max_momentum: float = 0.95, div_factor: float = 25.0, final_div_factor: float = 1e4):
        if anneal_strategy not in ("cos", "linear") or not 0 <= pct_start <= 1:
            raise ValueError("OneCycleLR: anneal_strategy must be 'cos' or 'linear' and pct_start lie in [0, 1], got "
                             f"{anneal_strategy!r} and {pct_start}")
        _finite("OneCycleLR", max_lr=max_lr, base_momentum=base_momentum, max_momentum=max_momentum,
                div_factor=div_factor, final_div_factor=final_div_factor)
        if not max(base_momentum, max_momentum) < 1 or not min(div_factor, final_div_factor) > 0:
            raise ValueError("OneCycleLR: base_momentum and max_momentum must be less than 1, div_factor and "
                             f"final_div_factor above 0, got {base_momentum}, {max_momentum}, {div_factor} and "
                             f"{final_div_factor}: 0.85, 0.95, 25 and 10,000 are usual")
        self.total_steps = _positive("OneCycleLR", "total_steps", total_steps)
        self.peak, self.linear = pct_start * total_steps - 1, anneal_strategy == "linear"
        initial = max_lr / div_factor
        self.rates = initial, max_lr, initial / final_div_factor
        self.cycle_momentum, self.momenta = cycle_momentum, (max_momentum, base_momentum, max_momentum)
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.param_groups[0]):
            raise ValueError("OneCycleLR: this optimizer has neither momentum nor betas: pass cycle_momentum=False")
        super().__init__(optimizer)

    def lr(self, count: int, base: float) -> float:
        return self._cycle(count, self.rates)

    def apply(self) -> None:
        if self.count >= self.total_steps:
            raise ValueError(f"OneCycleLR: step {self.count} is beyond its {self.total_steps} steps: count the batches "
                             "of all epochs, or step less often")
        super().apply()
        for group in self.optimizer.param_groups if self.cycle_momentum else ():
            momentum = self._cycle(self.count, self.momenta)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum

    def _cycle(self, count: int, values: Sequence[float]) -> float:
        first, middle, last = values
        if count <= self.peak:
            return self._anneal(first, middle, count / self.peak if self.peak else 0.0)
        return self._anneal(middle, last, (count - self.peak) / (self.total_steps - 1 - self.peak))

    def _anneal(self, start: float, end: float, share: float) -> float:
        if self.linear:
            return (end - start) * share + start
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
