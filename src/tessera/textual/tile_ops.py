"""The tile ops of textual programs: each is one function of public ops, its operands and its attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tessera as ts

OPS: dict[str, Callable[..., Any]] = {}


def tile_op(fn: Callable[..., Any]) -> Callable[..., Any]:
    OPS[fn.__name__.rstrip("_")] = fn
    return fn


@tile_op
def matmul(a: Any, b: Any, *, bm: int = 64, bn: int = 64, bk: int = 64) -> Any:
    """a[…, M, K] @ b[…, K, N]. The tile sizes are the author's wish: the CPU's own products choose theirs."""
    if min(bm, bn, bk) < 1:
        raise ts.errors.ArgumentValueError("Tile sizes are positive", expected="bm, bn, bk ≥ 1", received=f"{bm}, {bn}, {bk}")
    return ts.matmul(a, b)


@tile_op
def softmax(x: Any, *, axis: int = -1) -> Any:
    return ts.softmax(x, axis=axis)


@tile_op
def svd(a: Any) -> tuple[Any, Any, Any]:
    """U[…, M, R], S[…, R, R] diagonal, V[…, R, N] with orthonormal rows: ``U @ S @ V`` is ``a``; R = min(M, N)."""
    u, s, v = ts.ops.linalg.svd(a, full_matrices=False)
    return u, ts.expand_dims(s, -1) * ts.eye(s.shape[-1], dtype=s.dtype), v


@tile_op
def threshold(x: Any, tau: Any, *, mode: str = "soft") -> Any:
    """Soft: sign(x) · max(|x| − tau, 0) (Donoho, 1995). Hard: x where |x| > tau, else 0."""
    if mode == "soft":
        return ts.sign(x) * ts.relu(ts.abs(x) - tau)
    if mode == "hard":
        return ts.where(ts.abs(x) > tau, x, ts.zeros_like(x))
    raise ts.errors.ArgumentValueError(f"No threshold is called {mode!r}", expected='mode="soft" or mode="hard"', received=mode)


@tile_op
def init(x: Any) -> Any:
    return x


@tile_op
def gate(x: Any, weights: Any) -> Any:
    """Probabilities of experts, softmax(x @ weights) over the last axis; ``weights[D, E]`` may be a function of x that gives logits."""
    return ts.softmax(weights(x) if callable(weights) else x @ weights, axis=-1)


@tile_op
def moe_dispatch(x: Any, p: Any, experts: list[Callable[[Any], Any]], *, k: int = 0) -> Any:
    """Σ p[…, e] · experts[e](x) over the ``k`` likeliest experts, whose p is scaled to sum 1 (0: over all, as they are)."""
    n = len(experts)
    if p.shape[-1] != n:
        raise ts.ShapeError("As many probabilities as experts", expected=f"{n} along the last axis of p", received=str(tuple(p.shape)))
    if not 0 <= k <= n:
        raise ts.errors.ArgumentValueError("k counts experts", expected=f"0 to {n}", received=str(k))
    if k:
        _, chosen = ts.topk(p, k, axis=-1)
        kept = p * ts.sum(ts.one_hot(chosen, n, dtype=p.dtype), axis=-2)
        p = kept / ts.sum(kept, axis=-1, keepdims=True)
    total = p[..., 0:1] * experts[0](x)
    for e in range(1, n):
        total = total + p[..., e:e + 1] * experts[e](x)
    return total


@tile_op
def invoke(y: Any) -> Any:
    return y


@tile_op
def model(y: Any) -> Any:
    return y


def _tokens(y: Any) -> Any:
    """Token ids: as they are, or the greedy choice of logits."""
    return ts.argmax(y, axis=-1) if y.dtype.is_float else y


@tile_op
def verify(target: Any, draft: Any) -> Any:
    """Where the draft's token is the target's greedy one; each side is token ids, or logits over the last axis."""
    return _tokens(target) == _tokens(draft)


@tile_op
def select(check: Any, a: Any, b: Any) -> Any:
    """``a`` where ``check`` holds, else ``b``; a check by token chooses whole rows of logits."""
    while check.ndim < max(a.ndim, b.ndim) and check.shape == a.shape[:check.ndim]:
        check = ts.expand_dims(check, -1)
    return ts.where(check, a, b)


@tile_op
def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean of −log softmax(logits)[label]; logits[…, V], integer labels[…]."""
    size = logits.shape[-1]
    return ts.cross_entropy(ts.reshape(logits, (-1, size)), ts.reshape(labels, (-1,)))


@tile_op
def reward_model(y: Any, scorer: Callable[[Any], Any]) -> Any:
    """The rewards of a policy's output, by the binding ``reward_model``."""
    return scorer(y)


@tile_op
def gae(reward: Any, values: Any = None, *, gamma: float = 0.99, lambda_: float = 0.95) -> Any:
    """Generalized advantage estimation along the last axis (Schulman et al., 2016).

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1}.  ``reward[…, T]``; ``values[…, T + 1]``, or ``[…, T]`` of
    episodes that end at T (V_T = 0), or none (V = 0).
    """
    steps = reward.shape[-1]
    delta = reward
    if values is not None:
        if values.shape[-1] == steps:
            values = ts.concat([values, ts.zeros_like(values[..., :1])], axis=-1)
        delta = reward + gamma * values[..., 1:] - values[..., :-1]
    in_time = ts.moveaxis(delta, -1, 0)

    def step(later: Any, d: Any) -> tuple[Any, Any]:
        now = d + gamma * lambda_ * later
        return now, now

    _, advantages = ts.scan(step, ts.zeros_like(in_time[0]), in_time, reverse=True)
    return ts.moveaxis(advantages, 0, -1)


@tile_op
def ppo(new: Any, adv: Any, old: Any = None, *, clip: float = 0.2) -> Any:
    """The clipped objective, to be maximised (Schulman et al., 2017): mean of min(ρ A, clamp(ρ, 1 − clip, 1 + clip) A).

    ρ = exp(new − old) of log-probabilities. Without ``old`` this is the first step after sampling: ρ = 1, whose gradient
    is that of log-probabilities times advantages.
    """
    ratio = ts.exp(new - (ts.stop_gradient(new) if old is None else old))
    return ts.mean(ts.minimum(ratio * adv, ts.clamp(ratio, 1 - clip, 1 + clip) * adv))
