"""One random generator for the library: initialisers, dropout and `randn` draw from it, so one seed fixes a run."""

from __future__ import annotations

from typing import Any

import numpy as np

_generator = np.random.Generator(np.random.Philox(0))


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the library's generator at `seed` (a non-negative integer) and return it.

    The bit generator is Philox4x64 (Salmon et al. 2011): counter-based, the same stream on every machine.
    Raises TypeError for a seed that is not an integer, ValueError for a negative one.
    """
    global _generator
    if not hasattr(seed, "__index__"):
        raise TypeError(f"manual_seed: the seed must be an integer, got {type(seed).__name__} {seed}")
    if int(seed) < 0:
        raise ValueError(f"manual_seed: the seed must not be negative, got {seed}")
    _generator = np.random.Generator(np.random.Philox(int(seed)))
    return _generator


def generator() -> np.random.Generator:
    """The generator that `manual_seed` restarts."""
    return _generator


def get_state() -> dict[str, Any]:
    """The generator's state as plain integers and lists, ready for JSON: what a checkpoint keeps."""
    state = _generator.bit_generator.state
    return {
        "counter": [int(v) for v in state["state"]["counter"]],
        "key": [int(v) for v in state["state"]["key"]],
        "buffer": [int(v) for v in state["buffer"]],
        "buffer_pos": int(state["buffer_pos"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def set_state(saved: dict[str, Any]) -> None:
    """Continue where `get_state` was called."""
    state = {name: saved[name] for name in ("buffer_pos", "has_uint32", "uinteger")}
    state["bit_generator"] = "Philox"
    state["buffer"] = np.array(saved["buffer"], dtype=np.uint64)
    state["state"] = {name: np.array(saved[name], dtype=np.uint64) for name in ("counter", "key")}
    _generator.bit_generator.state = state
