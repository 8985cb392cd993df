"""One random generator for the library: initialisers, dropout and `randn` draw from it, so one seed fixes a run.

Dropout draws one word a call, the key of its mask; the mask itself is a function of the key (kernels/reference.py).
"""

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
        raise TypeError(f"manual_seed: the seed must be an integer, got {type(seed).__name__} {seed}; use int()")
    if int(seed) < 0:
        raise ValueError(f"manual_seed: the seed must not be negative, got {seed}; use 0 or more")
    _generator = np.random.Generator(np.random.Philox(int(seed)))
    return _generator


def generator() -> np.random.Generator:
    """The generator that `manual_seed` restarts."""
    return _generator


def key() -> int:
    """One raw word of the generator, from 0 to 2^64 - 1: the key of random numbers that are a function of a position.

    The words are fixed for ever, while what a `numpy.random.Generator` makes of them may change (NEP 19).
    """
    return int(_generator.bit_generator.random_raw())


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
    """Continue where `get_state` was called. Raises ValueError, and changes nothing, for what it did not return."""
    trial = np.random.Philox()
    try:
        state: dict[str, Any] = {name: int(saved[name]) for name in ("buffer_pos", "has_uint32", "uinteger")}
        state["bit_generator"] = "Philox"
        state["buffer"] = np.array(saved["buffer"], dtype=np.uint64)
        state["state"] = {name: np.array(saved[name], dtype=np.uint64) for name in ("counter", "key")}
        trial.state = state  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"random.set_state: this is no state of the generator ({error!r}); pass what get_state() "
                         "returned") from error
    _generator.bit_generator.state = state
