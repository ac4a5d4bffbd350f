"""The residual of the steady 2-D Navier-Stokes equations for a network, as physics-informed networks (PINN) train on it.

A stream function psi gives the velocity (u, v) = (psi_y, -psi_x), free of divergence by construction; the momentum equation takes its
third derivatives.  Written twice: with fields, and with nested derivatives of a plain function.

    python examples/navier_stokes.py
"""

import numpy as np

import tessera as ts
from tessera import op

NU = 0.05


def residual(psi, p):
    """u u_x + v u_y + p_x - nu lap(u), of a stream function and a pressure: fields."""
    u, v = op.grad(psi, wrt="y"), -op.grad(psi, wrt="x")
    return u * op.grad(u, wrt="x") + v * op.grad(u, wrt="y") + op.grad(p, wrt="x") - NU * op.laplacian(u)


def residual_by_hand(psi, p):
    """The same of functions of (x, y): nested gradients at one point, mapped over points."""
    dx, dy = (lambda f: ts.grad(f, argnums=0)), (lambda f: ts.grad(f, argnums=1))
    u = dy(psi)

    def at(x, y):
        v = -dx(psi)(x, y)
        return u(x, y) * dx(u)(x, y) + v * dy(u)(x, y) + dx(p)(x, y) - NU * (dx(dx(u))(x, y) + dy(dy(u))(x, y))

    return ts.vmap(at)


def main():
    rng = np.random.default_rng(0)
    points = ts.tensor(rng.uniform(-1, 1, (64, 2)))

    # Kovasznay's flow solves the equations: its residual is zero.
    lam = 1 / (2 * NU) - np.sqrt(1 / (4 * NU ** 2) + 4 * np.pi ** 2)
    psi = op.field(lambda q: q[:, 1] - ts.exp(lam * q[:, 0]) * ts.sin(2 * np.pi * q[:, 1]) / (2 * np.pi))
    p = op.field(lambda q: 0.5 * (1 - ts.exp(2 * lam * q[:, 0])))
    worst = float(ts.max(ts.abs(residual(psi, p)(points))))
    print(f"residual of Kovasznay's solution: {worst:.1e}")
    assert worst < 1e-10
    by_hand = residual_by_hand(lambda x, y: y - ts.exp(lam * x) * ts.sin(2 * np.pi * y) / (2 * np.pi),
                               lambda x, y: 0.5 * (1 - ts.exp(2 * lam * x)))
    assert float(ts.max(ts.abs(by_hand(points[:, 0], points[:, 1])))) < 1e-10

    # A network's residual has none of that symmetry: its third derivatives beside differences of second ones.
    net = op.mlp(in_dim=2, hidden=[16, 16], out_dim=1, dtype=ts.f64, seed=1)
    xxy = op.grad(op.grad(op.grad(net, wrt="x"), wrt="x"), wrt="y")
    xx = op.grad(op.grad(net, wrt="x"), wrt="x")
    step = ts.tensor(np.array([0.0, 1e-5]))
    fd = (xx(points + step) - xx(points - step)) / 2e-5
    assert float(ts.max(ts.abs(xxy(points) - fd))) < 1e-7
    print("third derivatives of the network agree with differences of second ones to 1e-7")

    # The gradient of the loss by the weights: a fourth derivative, in one compiled program.
    def loss(net, points):
        return (residual(net, op.field(lambda q: 0 * q[:, 0]))(points) ** 2).mean()

    train = ts.jit(lambda q: ts.value_and_grad(loss)(net, q))
    value, grads = train(points)
    weight = net.parameters["weight1"].numpy()

    def loss_with(w):
        h = lambda q: ts.tanh(ts.tanh(q @ net.parameters["weight0"] + net.parameters["bias0"]) @ w + net.parameters["bias1"])
        return loss(op.field(lambda q: h(q) @ net.parameters["weight2"] + net.parameters["bias2"]), points)

    run = ts.jit(loss_with)
    e = np.zeros_like(weight)
    e[3, 5] = 1e-5
    fd = (float(run(ts.tensor(weight + e))) - float(run(ts.tensor(weight - e)))) / 2e-5
    assert abs(float(grads["weight1"][3, 5]) - fd) < 1e-7 * max(1, abs(fd)), (float(grads["weight1"][3, 5]), fd)
    print(f"loss {float(value):.4f}; its gradient by a weight agrees with central differences to 1e-7")


if __name__ == "__main__":
    main()
