"""A lesson of two exercises for the tests of the lessons' tools; it carries its own checks."""

from pathlib import Path

from tinyres.teach import lesson as reading

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 42
#   title: Twice
#   minutes: 5             # of a learner
#   seconds: 2
#   needs: [1, 3]
#   objectives: [double a number, "halve it, too"]
# ---
"""
SOLUTION = ('# %% nbgrader={"grade": false, "grade_id": "NAME", "locked": false, "schema_version": 3, '
            '"solution": true, "task": false}\n')
CHECK = ('# %% nbgrader={"grade": true, "grade_id": "check-NAME", "locked": true, "points": 2, '
         '"schema_version": 3, "solution": false, "task": false}\n')
TEXT = HEADER + """\

# %% [markdown]
# # Twice
#
# A sum of two: $x + x = 2x$, and
#
# $$\\\\sum_i x_i .$$
#
# <details><summary>Answer</summary>
#
# It is $4$.
#
# </details>

# %%
import matplotlib.pyplot as plt

import tinyres as tr
from tinyres.teach import Misconception, seed

tr.use_kernels("reference")
FACTOR = 2
unused = [0] * 5


class lesson_42:
    @staticmethod
    def double(double):
        if double(3) == 9:
            raise Misconception("squares", "double(3) gave 9, which is 3 * 3.\\n\\nLook at the operator.")
        assert double(3) == 6, f"double(3) gave {double(3)}"
        print(f"double: right on one number, seed {seed()}")

    @staticmethod
    def halve(halve):
        assert halve(6) == 3
        print("halve: right on one number")


# %% tags=["a"]
print("a cell that no check needs")
unused.append(1)

""" + SOLUTION.replace("NAME", "double") + '''\
def double(x):
    """x twice."""
    ### BEGIN SOLUTION
    total = FACTOR * x
    return total
    ### END SOLUTION

''' + CHECK.replace("NAME", "double") + """\
lesson_42.double(double)

# %%
figure, axes = plt.subplots(figsize=(2, 2))
axes.plot([1, 2], [double(1), double(2)], label="twice")
axes.set(title="Is it a line?", xlabel="x", ylabel="2x", yscale="log")
axes.legend()
plt.close(figure)
figure

""" + SOLUTION.replace("NAME", "halve") + '''\
def halve(x):
    """Half of x."""
    ### BEGIN SOLUTION
    return x / 2
    ### END SOLUTION

''' + CHECK.replace("NAME", "halve") + """\
lesson_42.halve(halve)

# %% [markdown]
# See [the first lesson](01_forks_and_order.py), and [that](../README.md).
"""
WRONG = '''\
from tinyres.teach import WrongAnswer

WRONG = [
    WrongAnswer("double", "squares", "twice is the square", "def double(x):\\n    return x * x\\n"),
    WrongAnswer("double", "never", "it takes long", "def double(x):\\n    while True:\\n        pass\\n"),
    WrongAnswer("halve", "none", "nobody knows", "def halve(x):\\n    return double(x)\\n"),
]
'''


def lesson(text=TEXT, name="42_twice.py"):
    return reading.parse(text, Path(name))


def folder(place):
    """The folder with the lesson and its wrong answers."""
    (place / "wrong_answers").mkdir(parents=True)
    (place / "42_twice.py").write_text(TEXT, encoding="utf-8")
    (place / "wrong_answers" / "lesson_42.py").write_text(WRONG, encoding="utf-8")
    return place
