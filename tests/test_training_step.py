"""A whole training step of ResNet-20: how often memory is rearranged, and whether it stays flat."""

import gc
import tracemalloc

import numpy as np

import tinyres as tr
from tinyres import models, optim
from tinyres.kernels import layout


def make_step(model, N):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 3, 32, 32), dtype=np.float32)  # NCHW in memory: one copy is due
    y = rng.integers(0, 10, N)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)

    def step():
        optimizer.zero_grad()
        loss = tr.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def test_a_resnet20_step_copies_one_layout_its_input():
    step = make_step(models.resnet20(), 4)
    step()
    with layout.count_copies() as counted:
        step()
    assert counted.copies == 1


def test_float32_stays_float32_in_every_gradient_and_weight():
    model = models.resnet20(option="B")
    make_step(model, 4)()
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    assert {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float32)}


def test_memory_is_flat_over_200_steps():
    step = make_step(models.resnet8(), 2)
    gc.disable()  # a cycle would keep its arrays alive and show
    tracemalloc.start()
    try:
        for _ in range(20):
            step()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            step()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < 1_000_000  # one activation more a step would make 26 MB


def test_equal_seeds_give_equal_losses_bit_for_bit():
    losses = []
    for _ in range(2):
        tr.manual_seed(3)
        step = make_step(models.resnet8(), 8)
        losses.append([step() for _ in range(3)])
    assert losses[0] == losses[1]
