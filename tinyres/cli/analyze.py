"""`tinyres analyze`: the instruments that look inside a network, each with its paper, a table, a figure and JSON.

The common set-up is in tinyres.cli.analyze_subject; the instruments of the function are in analyze_function.
"""

from __future__ import annotations

from tinyres.cli.analyze_subject import Subject, subject  # the set-up; import it from there, this file imports yours

__all__ = ["Subject", "subject"]
