"""Training in f16 with a loss scale: small gradients survive, overflows are skipped.

    python examples/mixed_precision.py
"""

import numpy as np

import tessera as ts


def loss(p, x, y):
    with ts.autocast(ts.f16):  # products take f16 operands; parameters and sums stay f32
        h = ts.tanh(x @ p["a"])
        return (((h @ p["b"]) - y) ** 2).mean()


def train(scaler, p, x, y, steps):
    """Gradient descent under a dynamic loss scale; returns parameters, losses and the scales seen."""
    @ts.jit
    def gradients(p, x, y):
        return ts.value_and_grad(lambda p: scaler.scaled(loss(p, x, y)))(p)

    losses, scales = [], []
    for _ in range(steps):
        scale = scaler.scale
        value, grads = gradients(p, x, y)
        grads, finite = scaler.unscaled(grads)
        if bool(finite):
            p = {k: p[k] - 0.2 * grads[k] for k in p}
        scaler.update(finite)
        losses.append(float(value) / scale)
        scales.append(scaler.scale)
    return p, losses, scales


def main():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    y = np.sin(x[:, :1]).astype(np.float32)
    start = {"a": ts.tensor(rng.normal(size=(8, 32)).astype(np.float32) * 0.4),
             "b": ts.tensor(rng.normal(size=(32, 1)).astype(np.float32) * 0.2)}
    xs, ys = ts.tensor(x), ts.tensor(y)

    exact = ts.grad(lambda p: (((ts.tanh(xs @ p["a"]) @ p["b"]) - ys) ** 2).mean())(start)
    scaler = ts.GradScaler(1024.0)
    grads, finite = scaler.unscaled(ts.grad(lambda p: scaler.scaled(loss(p, xs, ys)))(start))
    off = max(float(ts.max(ts.abs(grads[k] - exact[k])) / ts.max(ts.abs(exact[k]))) for k in start)
    assert bool(finite) and off < 5e-3
    print(f"gradients with f16 products are within {off:.1e} of those in f32")

    # 1e-9 is zero in f16; under a scale it is not.
    tiny = lambda s: ts.grad(lambda x: (x.to(ts.f16) * s).sum().to(ts.f32) * 1e-9)(ts.ones(4))
    assert tiny(1.0).tolist() == [0.0] * 4
    kept = ts.grad(lambda x: x.to(ts.f16).sum().to(ts.f32) * 1e-9 * 65536)(ts.ones(4)) / 65536
    assert np.allclose(kept.numpy(), 1e-9, rtol=1e-2)
    print("a gradient of 1e-9 underflows in f16, and survives under a scale of 65536")

    p, losses, scales = train(ts.GradScaler(2.0 ** 40, growth_interval=200), start, xs, ys, 150)
    print(f"loss {losses[-1]:.4f} at the end; the scale fell from 2^40 to 2^{int(np.log2(scales[-1]))}")
    final = float(ts.jit(loss)(p, xs, ys))
    first = float(ts.jit(loss)(start, xs, ys))
    assert scales[-1] < 2.0 ** 40 and final < 0.3 * first, (first, final, scales[-1])
    print(f"training went on after the skipped steps: {first:.3f} before, {final:.3f} after")


if __name__ == "__main__":
    main()
