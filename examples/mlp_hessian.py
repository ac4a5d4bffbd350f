"""The Hessian of a multilayer perceptron with 1,000 parameters, all at once and along one direction.

    python examples/mlp_hessian.py
"""

import numpy as np

import tessera as ts

INPUTS, HIDDEN = 18, 50  # 18 * 50 + 50 + 50 = 1,000 parameters


def loss(p, x, y):
    """Mean squared error; ``p`` is the flat vector of parameters."""
    w, b, out = p[:INPUTS * HIDDEN].reshape(INPUTS, HIDDEN), p[INPUTS * HIDDEN:-HIDDEN], p[-HIDDEN:]
    return ((ts.tanh(x @ w + b) @ out - y) ** 2).mean()


def main():
    rng = np.random.default_rng(0)
    count = INPUTS * HIDDEN + 2 * HIDDEN
    p, x, y = rng.normal(size=count) * 0.3, rng.normal(size=(32, INPUTS)), rng.normal(size=32)
    args = ts.tensor(x), ts.tensor(y)

    h = ts.hessian(loss)(ts.tensor(p), *args).numpy()
    print(f"Hessian of {count} parameters: {h.shape[0]} x {h.shape[1]}, asymmetry {abs(h - h.T).max():.1e}")
    assert h.shape == (1000, 1000) and abs(h - h.T).max() < 1e-12

    gradient = ts.grad(loss)
    for i in (0, 417, 925, 999):  # a weight, another, a bias, an output weight
        step = 1e-6 * np.eye(count)[i]
        fd = (gradient(ts.tensor(p + step), *args) - gradient(ts.tensor(p - step), *args)).numpy() / 2e-6
        assert abs(h[i] - fd).max() < 1e-7, i
    print("four rows agree with central differences of the gradient to 1e-7")

    # A product with the Hessian needs no matrix: forward mode over reverse mode.
    v = rng.normal(size=count)
    hv = ts.jvp(lambda p: gradient(p, *args), (ts.tensor(p),), (ts.tensor(v),))[1].numpy()
    assert np.allclose(hv, h @ v, rtol=1e-10, atol=1e-12)
    print("the product with a vector, without the matrix, agrees to 1e-10")


if __name__ == "__main__":
    main()
