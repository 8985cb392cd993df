"""The lessons' tools: from one source a lesson becomes the student's notebook, the solution, a page and a course.

    tinyres teach list | build | check | release | serve

`Misconception` is what a lesson's checks raise; `seed` is where they draw their random inputs from.
"""

from __future__ import annotations

import os
import sys

from tinyres.teach.misconception import Misconception, WrongAnswer

__all__ = ["Misconception", "WrongAnswer", "seed"]

SEED_VARIABLE = "TINYRES_SEED"


def seed() -> int:
    """The seed of the checks' random inputs.

    In this order: SEED of the notebook or script that runs, as a course's notebooks set it in their first cell, one for
    each student; the environment variable TINYRES_SEED; 0. Raises ValueError for one that is no whole number >= 0.
    """
    found = getattr(sys.modules.get("__main__"), "SEED", None)
    where = "SEED in the first cell"
    if found is None:
        found, where = os.environ.get(SEED_VARIABLE) or 0, f"the environment variable {SEED_VARIABLE}"
    try:
        number = int(found)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"teach: {where} is {found!r}, expected a whole number of at least 0: restore that cell from "
                         "the notebook as it was handed out")
    return number
