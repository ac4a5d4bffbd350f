"""Training for int8: the network learns on the integers' grid, then runs in int8.

    python examples/quantized_training.py
"""

import numpy as np

import tessera as ts


@ts.quantization_aware(weights=ts.int8, activations=ts.int8, accumulate=ts.int32)
def network(x, a, b):
    return ts.relu(x @ a) @ b


def loss(a, b, x, y):
    return ((network(x, a, b) - y) ** 2).mean()


def main():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16)).astype(np.float32)
    y = np.maximum(x @ rng.normal(size=(16, 4)).astype(np.float32), 0)
    a = ts.tensor(rng.normal(size=(16, 64)).astype(np.float32) * 0.25)
    b = ts.tensor(rng.normal(size=(64, 4)).astype(np.float32) * 0.12)
    x, y = ts.tensor(x), ts.tensor(y)

    step = ts.jit(ts.value_and_grad(loss, argnums=(0, 1)))
    first, _ = step(a, b, x, y)
    for _ in range(150):
        last, (ga, gb) = step(a, b, x, y)
        a, b = a - 0.05 * ga, b - 0.05 * gb
    print(f"loss on the grid: {float(first):.3f} before, {float(last):.4f} after 150 steps")
    assert float(last) < 0.1 * float(first)

    # The gradient passes straight through the rounding: it is close to that of the network without a grid.
    smooth = ts.grad(lambda a: ((ts.relu(x @ a) @ b - y) ** 2).mean())(a)
    ga = step(a, b, x, y)[1][0]
    cosine = float((ga * smooth).sum() / ts.sqrt((ga * ga).sum() * (smooth * smooth).sum()))
    print(f"the straight-through gradient and the smooth one: cosine {cosine:.3f}")

    with network.calibration(percentile=100):
        network(x, a, b)
    trained = network(x, a, b)
    inferred = network.eval()(x, a, b)
    off = float(ts.max(ts.abs(trained - inferred)) / ts.max(ts.abs(trained)))
    error = float(((inferred - y) ** 2).mean())
    text = str(ts.jit(lambda x: network(x, a, b)).trace(x))
    network.train()
    print(f"int8 inference is within {off:.1e} of training's forward pass; its loss is {error:.4f}")
    assert off < 0.05 and error < 1.5 * float(last) + 1e-3
    assert "int8" in text and "int32" in text
    print("the program's products take int8 and sum in int32")


if __name__ == "__main__":
    main()
