"""The pages that the browser tests of the stepper open."""

import tinyres as tr
from tinyres import data, kernels, models, nn
from tinyres.stepper.example import hand_worked
from tinyres.stepper.html import page
from tinyres.stepper.trace import record

HOSTILE = """</script><img src=x onerror="alert('name')"><!--<script>\u2028"""


def network(name="resnet8", **options):
    tr.manual_seed(0)
    return models.build(name, in_channels=1, **options)


def loss_of(model):
    images, labels = data.digits("train").batch(2, 0)
    return tr.cross_entropy(model(images), labels)


def normal(*shape):
    return tr.Tensor(tr.random.generator().normal(size=shape).astype("float32"))


def does_not_fit():
    """A branch with stride 2 that comes back to its input."""
    tr.manual_seed(0)
    block = models.blocks.BasicBlock(4, 8, 2, nn.Identity())
    return block(normal(2, 4, 6, 6)).sum()


class Hostile(nn.Module):
    """Names that a careless page would take for markup."""

    def __init__(self):
        super().__init__()
        setattr(self, HOSTILE, nn.Linear(2, 2))

    def forward(self, x):
        return getattr(self, HOSTILE)(x) + x


def hostile():
    tr.manual_seed(0)
    return Hostile()(normal(2, 2)).sum()


RUNS = {
    "resnet8": lambda: loss_of(network()),
    "projection": lambda: loss_of(network(option="B")),
    "resnet20": lambda: loss_of(network("resnet20")),
    "resnet110": lambda: loss_of(network("resnet110")),
    "concatenation": lambda: loss_of(network("chain_concatenation")),
    "bottleneck": lambda: loss_of(network("chain_bottleneck")),
    "hand": lambda: hand_worked()(),
    "stopped": does_not_fit,
    "hostile": hostile,
}


class Pages(dict):
    """By the name of the run: the recording, and the file with its page; made when first asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, name):
        kernels.use_kernels("reference")  # which need not be compiled
        recording = record(RUNS[name], title=HOSTILE if name == "hostile" else name, details=name == "hand")
        path = self.folder / f"{name}.html"
        path.write_text(page(recording), encoding="utf-8")
        self[name] = recording, path
        return self[name]
