"""A layer whose output is a fixed point, z = tanh(W z + U x): a deep equilibrium model.

The derivative comes from the equation at the solution, so that memory does not depend on how many iterations found it.

    python examples/implicit_layer.py
"""

import numpy as np

import tessera as ts


@ts.implicit_diff
def solve(f, z, max_iters=500):
    for _ in range(max_iters):
        new = f(z)
        if ts.max(ts.abs(new - z)) < 1e-13:
            break
        z = new
    return z


def loss(w, u, x):
    z = solve(lambda z: ts.tanh(z @ w + x @ u), ts.zeros(x.shape[0], w.shape[0], dtype=x.dtype))
    return (z ** 2).sum()


def main():
    rng = np.random.default_rng(0)
    n = 12
    w, u, x = rng.normal(size=(n, n)) * 0.2, rng.normal(size=(5, n)), rng.normal(size=(3, 5))
    tensors = ts.tensor(w), ts.tensor(u), ts.tensor(x)
    gradient = ts.grad(loss, argnums=(0, 1))
    gw, gu = (g.numpy() for g in gradient(*tensors))

    # z = tanh(a), a = z W + x U, so that dz (1 - W D) = (z dW + x dU) D with D = diag(1 - z^2), example by example.
    z = np.zeros((3, n))
    for _ in range(2000):
        z = np.tanh(z @ w + x @ u)
    want_w, want_u = np.zeros_like(w), np.zeros_like(u)
    for i in range(3):
        d = np.diag(1 - z[i] ** 2)
        adjoint = d @ np.linalg.solve(np.eye(n) - w @ d, 2 * z[i])
        want_w += np.outer(z[i], adjoint)
        want_u += np.outer(x[i], adjoint)
    assert np.abs(gw - want_w).max() < 1e-8 and np.abs(gu - want_u).max() < 1e-8
    print("gradients by both weights agree with the implicit function theorem to 1e-8")

    def arena(limit):
        f = ts.grad(lambda w: (solve(lambda z: ts.tanh(z @ w + tensors[2] @ tensors[1]), ts.zeros(3, n, dtype=ts.f64),
                                     max_iters=limit) ** 2).sum())
        f(tensors[0])
        return f.programs[0].executable.arena

    few, many = arena(60), arena(6000)
    print(f"memory of the gradient: {few} bytes with at most 60 iterations, {many} with at most 6,000")
    assert few == many


if __name__ == "__main__":
    main()
