"""An LSTM over 512 steps by ``ts.scan``: the program does not grow with the length, forwards or backwards.

    python examples/lstm.py
"""

import numpy as np

import tessera as ts


def lstm(p, xs, state):
    """Outputs [T, B, H] and the final state, for inputs [T, B, I]."""
    def cell(state, x):
        h, c = state
        i, f, g, o = ts.chunk(x @ p["wx"] + h @ p["wh"] + p["b"], 4, -1)
        c = ts.sigmoid(f) * c + ts.sigmoid(i) * ts.tanh(g)
        h = ts.sigmoid(o) * ts.tanh(c)
        return (h, c), h

    return ts.scan(cell, state, xs)


def loss(p, xs, ys):
    zero = ts.zeros(xs.shape[1], p["wh"].shape[0], dtype=xs.dtype)
    _, hs = lstm(p, xs, (zero, zero))
    return ((hs @ p["out"] - ys) ** 2).mean()


def by_numpy(p, xs, ys):
    h = c = np.zeros((xs.shape[1], p["wh"].shape[0]))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    total = 0.0
    for x, y in zip(xs, ys, strict=True):
        i, f, g, o = np.split(x @ p["wx"] + h @ p["wh"] + p["b"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        total += ((h @ p["out"] - y) ** 2).sum()
    return total / ys.size


def main():
    rng = np.random.default_rng(0)
    steps, batch, inputs, hidden = 512, 4, 3, 16
    p = {"wx": rng.normal(size=(inputs, 4 * hidden)) * 0.4, "wh": rng.normal(size=(hidden, 4 * hidden)) * 0.2,
         "b": rng.normal(size=4 * hidden) * 0.1, "out": rng.normal(size=(hidden, 1)) * 0.5}
    xs = rng.normal(size=(steps, batch, inputs))
    ys = np.cumsum(xs, 0)[..., :1] * 0.1
    tensors = lambda p: {k: ts.tensor(v) for k, v in p.items()}
    gradient = ts.value_and_grad(loss)
    value, g = gradient(tensors(p), ts.tensor(xs), ts.tensor(ys))
    assert abs(float(value) - by_numpy(p, xs, ys)) < 1e-12
    print(f"loss over {steps} steps agrees with a loop in numpy to 1e-12")
    for name, place in (("wx", (1, 20)), ("wh", (3, 40)), ("b", (17,)), ("out", (2, 0))):
        up, down = ({k: v.copy() for k, v in p.items()} for _ in range(2))
        up[name][place] += 1e-6
        down[name][place] -= 1e-6
        fd = (by_numpy(up, xs, ys) - by_numpy(down, xs, ys)) / 2e-6
        assert abs(float(g[name][place]) - fd) < 1e-7, name
    print("gradients through 512 steps agree with central differences to 1e-7")

    short = ts.value_and_grad(loss)
    short(tensors(p), ts.tensor(xs[:8]), ts.tensor(ys[:8]))
    lines = [f.programs[0].graph for f in (short, gradient)]
    counts = [sum(1 for _ in graph.walk()) for graph in lines]
    print(f"ops of the program: {counts[0]} for 8 steps, {counts[1]} for {steps}")
    assert counts[0] == counts[1]


if __name__ == "__main__":
    main()
