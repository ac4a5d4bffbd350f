"""The gradient penalty of a Wasserstein GAN (WGAN-GP) on images [B, C, H, W]: a gradient inside a loss that is differentiated again.

    python examples/gradient_penalty.py
"""

import numpy as np

import tessera as ts


def critic(p, images):
    """A score for each image: a convolution, an activation and a weighted sum."""
    h = ts.tanh(ts.conv2d(images, p["kernel"], padding=1))
    return (h * p["head"]).sum((1, 2, 3))


def penalty(p, mixed):
    """mean((|d score / d image| - 1)^2): scores of images are independent, so that ``grad`` sums them first."""
    slope = ts.grad(lambda images: critic(p, images))(mixed)
    return ((ts.sqrt((slope ** 2).sum((1, 2, 3))) - 1) ** 2).mean()


def loss(p, real, fake, alpha):
    mixed = alpha * real + (1 - alpha) * fake
    return critic(p, fake).mean() - critic(p, real).mean() + 10 * penalty(p, mixed)


def main():
    rng = np.random.default_rng(0)
    b, c, h, w = 4, 3, 8, 8
    p = {"kernel": rng.normal(size=(5, c, 3, 3)) * 0.3, "head": rng.normal(size=(5, h, w)) * 0.2}
    real, fake, alpha = rng.normal(size=(b, c, h, w)), rng.normal(size=(b, c, h, w)), rng.uniform(size=(b, 1, 1, 1))
    images = [ts.tensor(a) for a in (real, fake, alpha)]
    tensors = lambda p: {k: ts.tensor(v) for k, v in p.items()}

    value, grads = ts.value_and_grad(loss)(tensors(p), *images)
    print(f"loss {float(value):.4f} on images {[b, c, h, w]}")
    run = ts.jit(loss)
    for name, place in (("kernel", (2, 1, 0, 2)), ("kernel", (4, 2, 1, 1)), ("head", (3, 5, 6))):
        up, down = ({k: v.copy() for k, v in p.items()} for _ in range(2))
        up[name][place] += 1e-6
        down[name][place] -= 1e-6
        fd = (float(run(tensors(up), *images)) - float(run(tensors(down), *images))) / 2e-6
        assert abs(float(grads[name][place]) - fd) < 1e-6, (name, place)
    print("its gradient, through the gradient inside, agrees with central differences to 1e-6")

    mixed = alpha * real + (1 - alpha) * fake
    ours = float(ts.jit(penalty)(tensors(p), ts.tensor(mixed)))
    slope = ts.grad(lambda x: critic(tensors(p), x).sum())  # image by image
    norms = [np.linalg.norm(slope(ts.tensor(mixed[i:i + 1])).numpy()) for i in range(b)]
    assert abs(ours - np.mean((np.array(norms) - 1) ** 2)) < 1e-12
    for_all = ts.gradient_penalty(lambda x: critic(tensors(p), x), images[0], images[1], alpha=images[2])
    assert abs(float(for_all) - 10 * ours) < 1e-10
    print("the penalty is that of single images, and that of ts.gradient_penalty")


if __name__ == "__main__":
    main()
