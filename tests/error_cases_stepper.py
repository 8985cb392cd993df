"""Mistakes with the stepper: the command, and files of one's own that it steps through."""

from error_case import Command, chapter

case = chapter("The stepper")


def step(folder, source, options=""):
    """`tinyres step net.py` for a file of this content."""
    (folder / "net.py").write_text(source)
    return Command(f"step net.py {options}"),


# --- files of one's own -----------------------------------------------------------------------------------------------


@case("A file to step through that is not there", 2, "FILE", "net.py", fix="check the path")
def _(folder):
    return Command("step net.py"),


@case("Weights in place of a file in Python", 2, "FILE", "w.npz", fix="by --weights")
def _(folder):
    (folder / "w.npz").write_bytes(b"")
    return Command("step w.npz"),


@case("A file that defines nothing to step through", 2, "FILE", "net.py defines nothing to step through",
      fix="define a function loss()")
def _(folder):
    return step(folder, "x = 1\n")


@case("A file with a model and nothing to give it", 2, "FILE", "defines model, but no images and no labels",
      fix="model, images and labels")
def _(folder):
    return step(folder, "from tinyres import nn\nmodel = nn.Linear(2, 2)\n")


@case("A loss that was computed already", 2, "FILE", "defines loss as a Tensor",
      fix="def loss(): return ...")
def _(folder):
    return step(folder, "import tinyres as tr\nloss = tr.tensor([1.0], requires_grad=True).sum()\n")


@case("A model that is no module", 2, "FILE", "model as function", "nn.Module", fix="define a function loss()")
def _(folder):
    return step(folder, "images, labels = None, None\ndef model(x): return x\n")


@case("A file that cannot be read as Python", 1, "net.py, line 2", "SyntaxError", fix="invalid syntax")
def _(folder):
    return step(folder, "import tinyres as tr\ndef loss(:\n")


@case("A file whose code fails", 1, "net.py, line 3", "NameError", fix="name 'y' is not defined")
def _(folder):
    return step(folder, "import tinyres as tr\ndef loss():\n    return y.sum()\n")


@case("A file that leaves before it defines anything", 1, "net.py", "sys.exit(3)", fix="if __name__ ==")
def _(folder):
    return step(folder, "import sys\nsys.exit(3)\n")


# --- options ----------------------------------------------------------------------------------------------------------


@case("A file and an example", 2, "--example", "'fork'", fix="leave one of them out")
def _(folder):
    return step(folder, "def loss(): ...\n", "--example fork")


@case("An example misspelt", 2, "--example", "'residul'", fix="did you mean 'residual'?")
def _(folder):
    return Command("step --example residul"),


@case("A batch for an example", 2, "--batch", "the example 'fork'", fix="leave it out")
def _(folder):
    return Command("step --example fork --batch 4"),


@case("Double precision for a loss of one's own", 2, "--float64", "the dtype it chooses", fix="define model, images")
def _(folder):
    return step(folder, "def loss(): ...\n", "--float64")


@case("A way of looking that there is not", 2, "--view", "'layers'", fix="blocks or ops")
def _(folder):
    return Command("step --view layers"),


@case("Questions where nobody can answer", 2, "--predict", "terminal", fix="leave it out")
def _(folder):
    return Command("step --predict"),


@case("A direction for a page", 2, "--forward", "about the text and the terminal", fix="press d")
def _(folder):
    return Command("step --forward --html step.html"),


@case("A page that is no HTML", 2, "--html", "step.pdf", fix="a name that ends in .html or .htm")
def _(folder):
    return Command("step --html step.pdf"),


@case("A drawing in a folder that is not there", 2, "--svg", "no folder figures", fix="make it first")
def _(folder):
    return Command("step --svg figures/step.svg"),
