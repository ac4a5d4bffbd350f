"""One peer of ``benchmarks/transforms.py`` in a process of its own: ``python transform_peers.py NAME`` (see ``peers.py``)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import peers
from cases import Arrays
from peers import Absent, Thunk
from transform_cases import CASES, gradients


def unpack(xp: Any, theta: Any) -> tuple[Any, Any, Any, Any]:
    """The Hessian's MLP from its vector of 1,000 parameters."""
    w1, b1, w2, b2 = theta[:945], theta[945:972], theta[972:999], theta[999:]
    return w1.reshape(35, 27), b1, w2.reshape(27, 1), b2


def squared_error(xp: Any, theta: Any, x: Any, y: Any) -> Any:
    w1, b1, w2, b2 = unpack(xp, theta)
    return (((xp.tanh(x @ w1 + b1) @ w2 + b2)[:, 0] - y) ** 2).mean()


def lstm_step(xp: Any, sigmoid: Any, split: Any, wx: Any, wh: Any, b: Any, carry: Any, x: Any) -> Any:
    h, c = carry
    i, f, g, o = split(x @ wx + h @ wh + b)
    c = sigmoid(f) * c + sigmoid(i) * xp.tanh(g)
    h = sigmoid(o) * xp.tanh(c)
    return (h, c), h


class JaxPeer(peers.JaxPeer):
    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        jax = self.jax
        fn, args = getattr(self, "_" + name)(arrays)
        put = jax.tree.map(jax.numpy.asarray, args)
        jitted = jax.jit(fn)
        return lambda: jax.block_until_ready(jitted(*put))

    def _gpt2_grad(self, a: Arrays) -> Any:
        jax, jnp = self.jax, self.jax.numpy

        def loss(weights: Any, ids: Any, targets: Any) -> Any:
            logits = peers._gpt2_forward(jnp, weights, a["config"], ids)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()
        return jax.value_and_grad(loss), (a["weights"], a["ids"], a["targets"])

    def _hessian(self, a: Arrays) -> Any:
        jnp = self.jax.numpy
        return self.jax.hessian(lambda t, x, y: squared_error(jnp, t, x, y)), (a["theta"], a["x"], a["y"])

    def _per_example(self, a: Arrays) -> Any:
        jax, jnp = self.jax, self.jax.numpy

        def loss(layers: Any, x: Any, y: Any) -> Any:
            for w, b in layers[:-1]:
                x = jnp.tanh(x @ w + b)
            return -jax.nn.log_softmax(x @ layers[-1][0] + layers[-1][1])[y]
        return jax.vmap(jax.grad(loss), (None, 0, 0)), (a["layers"], a["x"], a["y"])

    def _states(self, wx: Any, wh: Any, b: Any, xs: Any) -> Any:
        jax, jnp = self.jax, self.jax.numpy
        zero = jnp.zeros((xs.shape[1], wh.shape[0]), jnp.float32)
        step = lambda carry, x: lstm_step(jnp, jax.nn.sigmoid, lambda t: jnp.split(t, 4, -1), wx, wh, b, carry, x)
        return jax.lax.scan(step, (zero, zero), xs)[1]

    def _lstm(self, a: Arrays) -> Any:
        return self._states, [a[n] for n in ("wx", "wh", "b", "xs")]

    def _lstm_grad(self, a: Arrays) -> Any:
        return self.jax.grad(lambda *args: (self._states(*args) ** 2).sum(), (0, 1, 2)), [a[n] for n in ("wx", "wh", "b", "xs")]

    def _pool_grad(self, a: Arrays) -> Any:
        jax = self.jax
        pool = lambda x: jax.lax.reduce_window(x, -jax.numpy.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
        return lambda x, g: jax.vjp(pool, x)[1](g), (a["x"], a["g"])

    def _stem_grad(self, a: Arrays) -> Any:
        jax = self.jax
        conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), ((3, 3), (3, 3)))
        return lambda x, w, g: jax.vjp(lambda w: conv(x, w), w)[1](g), (a["x"], a["w"], a["g"])

    def to_numpy(self, out: Any) -> np.ndarray:
        return gradients(self.jax.tree.leaves(out))


class TorchPeer(peers.TorchPeer):
    def __init__(self, compiled: bool = False) -> None:
        super().__init__(compiled)
        self.torch.set_grad_enabled(True)

    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        return getattr(self, "_" + name)(arrays)  # type: ignore[no-any-return]

    def _ready(self, fn: Any) -> Any:
        return self.torch.compile(fn) if self.compiled else fn

    def _gpt2_grad(self, a: Arrays) -> Thunk:
        torch = self.torch
        model = peers.torch_gpt2(torch, a).requires_grad_(True)
        names = {id(p): n for n, p in model.named_parameters()}
        ids, targets = torch.from_numpy(a["ids"]), torch.from_numpy(a["targets"])

        def loss(ids: Any, targets: Any) -> Any:
            logits = model(ids, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        run = self._ready(loss)

        def step() -> Any:
            model.zero_grad(set_to_none=True)
            value = run(ids, targets)
            value.backward()
            by_name = {names[id(p)].removeprefix("transformer."): p.grad for p in model.parameters()}
            return [value.detach(), *(by_name[n] for n in sorted(by_name))]
        return step

    def _hessian(self, a: Arrays) -> Thunk:
        torch = self.torch
        args = [torch.from_numpy(a[n]) for n in ("theta", "x", "y")]
        run = self._ready(torch.func.hessian(lambda t, x, y: squared_error(torch, t, x, y)))
        return lambda: [run(*args)]

    def _per_example(self, a: Arrays) -> Thunk:
        torch = self.torch
        layers = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in a["layers"]]

        def loss(layers: Any, x: Any, y: Any) -> Any:
            for w, b in layers[:-1]:
                x = torch.tanh(x @ w + b)
            return torch.nn.functional.cross_entropy(x @ layers[-1][0] + layers[-1][1], y)
        run = self._ready(torch.func.vmap(torch.func.grad(loss), (None, 0, 0)))
        x, y = torch.from_numpy(a["x"]), torch.from_numpy(a["y"])
        return lambda: [t for pair in run(layers, x, y) for t in pair]

    def _module(self, a: Arrays) -> Any:
        torch = self.torch
        if self.compiled:
            raise Absent("torch.compile leaves nn.LSTM as it is")
        units = a["wh"].shape[0]
        module = torch.nn.LSTM(a["wx"].shape[0], units)
        with torch.no_grad():
            module.weight_ih_l0.copy_(torch.from_numpy(a["wx"].T.copy()))
            module.weight_hh_l0.copy_(torch.from_numpy(a["wh"].T.copy()))
            module.bias_ih_l0.copy_(torch.from_numpy(a["b"]))
            module.bias_hh_l0.zero_()
        return module

    def _lstm(self, a: Arrays) -> Thunk:
        module, xs = self._module(a), self.torch.from_numpy(a["xs"])

        def run() -> Any:
            with self.torch.no_grad():
                return [module(xs)[0]]
        return run

    def _lstm_grad(self, a: Arrays) -> Thunk:
        module, xs = self._module(a), self.torch.from_numpy(a["xs"])

        def run() -> Any:
            module.zero_grad(set_to_none=True)
            (module(xs)[0] ** 2).sum().backward()
            return [module.weight_ih_l0.grad.T, module.weight_hh_l0.grad.T, module.bias_ih_l0.grad]
        return run

    def _pullback(self, fn: Any, x: Any, g: Any) -> Thunk:
        """The cotangent of ``x`` through ``fn``."""
        run = self._ready(fn)
        return lambda: [*self.torch.autograd.grad(run(x), x, g)]

    def _pool_grad(self, a: Arrays) -> Thunk:
        torch = self.torch
        x, g = torch.from_numpy(a["x"]).requires_grad_(True), torch.from_numpy(a["g"])
        return self._pullback(lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1), x, g)

    def _stem_grad(self, a: Arrays) -> Thunk:
        torch = self.torch
        x, w, g = (torch.from_numpy(a[n]) for n in ("x", "w", "g"))
        return self._pullback(lambda w: torch.nn.functional.conv2d(x, w, None, 2, 3), w.requires_grad_(True), g)

    def to_numpy(self, out: Any) -> np.ndarray:
        return gradients([t.detach().numpy() for t in out])


class TesseraPeer(peers.TesseraPeer):
    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        return getattr(self, "_" + name)(arrays)  # type: ignore[no-any-return]

    def _gpt2_grad(self, a: Arrays) -> Thunk:
        from tessera.models import GPT2Model
        ts = self.ts
        model = GPT2Model.from_state(a["config"], a["weights"])

        def loss(model: Any, ids: Any, targets: Any) -> Any:
            return ts.cross_entropy(model(ids), targets).mean()
        step = ts.value_and_grad(loss)
        ids, targets = ts.from_numpy(a["ids"]), ts.from_numpy(a["targets"])
        return lambda: step(model, ids, targets)

    def _hessian(self, a: Arrays) -> Thunk:
        ts = self.ts
        run, args = ts.hessian(lambda t, x, y: squared_error(ts, t, x, y)), [ts.from_numpy(a[n]) for n in ("theta", "x", "y")]
        return lambda: run(*args)

    def _per_example(self, a: Arrays) -> Thunk:
        ts = self.ts

        def loss(layers: Any, x: Any, y: Any) -> Any:
            for w, b in layers[:-1]:
                x = ts.tanh(x @ w + b)
            return ts.cross_entropy(x @ layers[-1][0] + layers[-1][1], y)
        run = ts.jit(ts.vmap(ts.grad(loss), in_dims=(None, 0, 0)))
        layers = [(ts.from_numpy(w), ts.from_numpy(b)) for w, b in a["layers"]]
        x, y = ts.from_numpy(a["x"]), ts.from_numpy(a["y"])
        return lambda: run(layers, x, y)

    def _states(self, wx: Any, wh: Any, b: Any, xs: Any) -> Any:
        ts = self.ts
        zero = ts.zeros(xs.shape[1], wh.shape[0])
        step = lambda carry, x: lstm_step(ts, ts.sigmoid, lambda t: ts.split(t, dim=-1, sections=4), wx, wh, b, carry, x)
        return ts.scan(step, (zero, zero), xs)[1]

    def _lstm(self, a: Arrays) -> Thunk:
        args, run = [self.ts.from_numpy(a[n]) for n in ("wx", "wh", "b", "xs")], self.ts.jit(self._states)
        return lambda: run(*args)

    def _lstm_grad(self, a: Arrays) -> Thunk:
        ts = self.ts
        args = [ts.from_numpy(a[n]) for n in ("wx", "wh", "b", "xs")]
        run = ts.grad(lambda *p: (self._states(*p) ** 2).sum(), argnums=(0, 1, 2))
        return lambda: run(*args)

    def _pool_grad(self, a: Arrays) -> Thunk:
        ts = self.ts
        run = ts.jit(lambda x, g: ts.vjp(lambda x: ts.max_pool(x, 3, 2, 1), x)[1](g))
        x, g = ts.from_numpy(a["x"]), ts.from_numpy(a["g"])
        return lambda: run(x, g)

    def _stem_grad(self, a: Arrays) -> Thunk:
        ts = self.ts
        run = ts.jit(lambda x, w, g: ts.vjp(lambda w: ts.conv(x, w, stride=2, padding=3), w)[1](g))
        x, w, g = (ts.from_numpy(a[n]) for n in ("x", "w", "g"))
        return lambda: run(x, w, g)

    def to_numpy(self, out: Any) -> np.ndarray:
        import optree
        return gradients(optree.tree_leaves(out))


PEERS: dict[str, Any] = {"tessera": TesseraPeer, "torch": TorchPeer, "inductor": lambda: TorchPeer(compiled=True), "jax": JaxPeer}


if __name__ == "__main__":
    peers.main(sys.argv[1], PEERS, CASES)
