"""Model-agnostic meta-learning: the gradient through a step of gradient descent, with its second derivatives.

    python examples/maml.py
"""

import numpy as np

import tessera as ts

RATE = 0.05


def predict(p, x):
    return ts.tanh(x[:, None] * p["w"] + p["b"]) @ p["out"]


def loss(p, x, y):
    return ((predict(p, x) - y) ** 2).mean()


def adapted(p, x, y):
    """One step of gradient descent on a task."""
    g = ts.grad(loss)(p, x, y)
    return {k: p[k] - RATE * g[k] for k in p}


def meta_loss(p, x, y, x_test, y_test):
    """The mean over tasks of the loss after adaptation; tasks lie along the first axis."""
    return ts.vmap(lambda x, y, xt, yt: loss(adapted(p, x, y), xt, yt))(x, y, x_test, y_test).mean()


def main():
    rng = np.random.default_rng(0)
    tasks, shots, width = 8, 10, 16
    amplitude, phase = rng.uniform(0.5, 2, (tasks, 1)), rng.uniform(0, np.pi, (tasks, 1))
    x, xt = rng.uniform(-3, 3, (2, tasks, shots))
    data = [ts.tensor(a) for a in (x, amplitude * np.sin(x + phase), xt, amplitude * np.sin(xt + phase))]
    start = {"w": rng.normal(size=width), "b": rng.normal(size=width), "out": rng.normal(size=width) * 0.3}
    p = {k: ts.tensor(v) for k, v in start.items()}

    step = ts.jit(ts.value_and_grad(meta_loss))
    value, g = step(p, *data)
    run = ts.jit(meta_loss)
    for name in start:
        e = np.zeros(width)
        e[5] = 1e-6
        up, down = (float(run({**p, name: ts.tensor(start[name] + s * e)}, *data)) for s in (1, -1))
        assert abs(float(g[name][5]) - (up - down) / 2e-6) < 1e-7
    print("the meta-gradient agrees with central differences to 1e-7")

    def first_order(p, *data):  # the inner gradient held constant: another vector, or the second order would be missing
        held = lambda q, x, y: {k: q[k] - RATE * ts.stop_gradient(v) for (k, v) in ts.grad(loss)(q, x, y).items()}
        return ts.vmap(lambda x, y, xt, yt: loss(held(p, x, y), xt, yt))(*data).mean()

    other = ts.grad(first_order)(p, *data)
    away = max(float(ts.max(ts.abs(other[k] - g[k]))) for k in p)
    assert away > 1e-3
    print(f"without second derivatives it would be off by {away:.3f}")

    for _ in range(200):
        now, g = step(p, *data)
        p = {k: p[k] - 0.05 * g[k] for k in p}
    print(f"loss after one step of adaptation: {float(value):.3f} before, {float(now):.3f} after 200 meta-steps")
    assert float(now) < 0.6 * float(value)


if __name__ == "__main__":
    main()
