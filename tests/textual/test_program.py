"""Textual programs (inventory I022–I030): the specification's texts print back, run, and equal numpy."""

import re
from pathlib import Path

import numpy as np
import pytest

import tessera as ts
from tessera.textual import TextError, parse

PAGE = Path(__file__).parents[2] / "docs" / "textual.md"
RNG = np.random.default_rng(0)
ATTENTION = "Q: Tensor[B, H, N, D]\nK: Tensor[B, H, N, D]\nV: Tensor[B, H, N, D]\nS = Q @ adjoint(K)\nP = softmax(S)\nO = P @ V"
TILED = """%s = tile.matmul %Q, %K^T {bm=64, bn=64, bk=64}
%p = tile.softmax %s {axis=-1}
%o = tile.matmul %p, %V {bm=64, bn=64, bk=64}"""
DENOISE = "%U, %S, %V = tile.svd %A\n%S' = tile.threshold %S, %tau\n%A' = tile.matmul %U, (%S' @ %V)"
RECURSION = "%r0 = tile.init %x\n%r1 = Σ wi * fi(%r0)\n%r2 = Σ wi * fi(%r1)"
EXPERTS = "%p = tile.gate %x → [p1, p2, ...]\n%o = tile.moe_dispatch %x, %p, [E1, E2, ... En]"
VERIFY = """%y_draft = tile.invoke %small_model(%x)
%check = tile.verify %large_model(%x), %y_draft
%y = tile.select %check, %y_draft, %large_model(%x)"""
RLHF = """%y = tile.model %policy(%x)
%loss = tile.cross_entropy %y, %labels

%reward = tile.reward_model %policy(%x)
%adv = tile.gae %reward
%update = tile.ppo %policy, %adv"""


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def soft(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("text", [ATTENTION, TILED, DENOISE, RECURSION, EXPERTS, VERIFY, RLHF,
                                  "# said\nx: Tensor[B, 4]\ny = -x * 2.5 + sum wk_ * x\nz = f((x + y), [x, y])^H / 1e-3",
                                  '%t = tile.threshold %x, 0.5 {mode="hard"} ', "%p = tile.gate %x -> [a, ...]", "s = Σ_k wk * fk(x)"])
def test_prints_back(text):
    assert str(parse(text)) == text.strip()
    spaced = "\n".join(row if row.startswith("#") else row.replace(" ", "  ") for row in text.split("\n"))
    assert str(parse("\n" + spaced + "\n")) == text.strip()


@pytest.mark.parametrize("text", [ATTENTION, TILED])
def test_attention(text):
    q, k, v = normal(2, 3, 5, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4)
    wanted = soft(q @ k.swapaxes(-1, -2)) @ v
    program = parse(text)
    assert program.inputs == ("Q", "K", "V")
    np.testing.assert_allclose(program.run(Q=q, K=k, V=v)[program.outputs[-1]], wanted, atol=1e-5)
    np.testing.assert_allclose(program.jit()(*map(ts.tensor, (q, k, v))), wanted, atol=1e-5)


def test_one_compiled_function_checks_each_call_against_the_declarations():
    attention = parse(ATTENTION).jit()
    for n in (5, 9, 1):
        q, k, v = normal(2, 3, n, 4), normal(2, 3, n, 4), normal(2, 3, n, 4)
        np.testing.assert_allclose(attention(*map(ts.tensor, (q, k, v))), soft(q @ k.swapaxes(-1, -2)) @ v, atol=1e-5)
    with pytest.raises(TextError, match="N is 5 by 'Q' and 6 in 'K'"):
        attention(*map(ts.tensor, (normal(2, 3, 5, 4), normal(2, 3, 6, 4), normal(2, 3, 6, 4))))


def test_denoising():
    a, program = normal(6, 5), parse(DENOISE)
    made = program.run(A=a, tau=0.0)
    np.testing.assert_allclose(made["U"].numpy() @ made["S"].numpy() @ made["V"].numpy(), a, atol=1e-5)
    np.testing.assert_allclose(made["A'"], a, atol=1e-5)
    u, s, v = np.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(program.run(A=a, tau=1.0)["A'"], u @ np.diag(np.maximum(s - 1, 0)) @ v, atol=1e-5)
    low = normal(30, 1) @ normal(1, 20)
    noisy = low + 0.05 * normal(30, 20)
    cleaned = program.run(A=noisy, tau=0.6)["A'"].numpy()
    assert np.linalg.matrix_rank(cleaned, tol=1e-4) == 1 and np.linalg.norm(cleaned - low) < np.linalg.norm(noisy - low)


def test_threshold_modes():
    x = np.array([-2, -0.5, 0, 0.5, 2], np.float32)
    run = lambda mode: parse(f'y = tile.threshold x, 1 {{mode="{mode}"}}').run(x=x)["y"].numpy().tolist()
    assert run("soft") == [-1, 0, 0, 0, 1] and run("hard") == [-2, 0, 0, 0, 2]
    with pytest.raises(ts.errors.ArgumentValueError, match="No threshold is called 'rough'"):
        run("rough")


@pytest.mark.parametrize("token", ["Σ", "sum"])
def test_recursion(token):
    x, w = normal(4), np.array([0.25, 0.5, 0.75], np.float32)
    step = lambda r: w[0] * np.tanh(r) + w[1] * np.sin(r) + w[2] * np.exp(r)
    f = [ts.tanh, ts.sin, ts.exp]
    program = parse(RECURSION.replace("Σ", token))
    np.testing.assert_allclose(program.run(x=x, w=w, f=f)["r2"], step(step(x)), rtol=1e-5)
    np.testing.assert_allclose(program.jit(f=f)(ts.tensor(x), ts.tensor(w)), step(step(x)), rtol=1e-5)
    numbered = {f"f{i}": g for i, g in enumerate(f, 1)} | {f"w{i}": v for i, v in enumerate(w, 1)}
    np.testing.assert_allclose(program.run(x=x, **numbered)["r2"], step(step(x)), rtol=1e-5)


def test_a_name_made_before_is_no_family():
    program = parse("phi = x * 2\ny = Σ wi * phi")
    assert program.inputs == ("x", "w")
    assert program.run(x=3.0, w=[1.0, 2.0])["y"].item() == 18.0


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_experts(k):
    x, g = normal(5, 4), normal(4, 3)
    experts, meanings = [ts.tanh, ts.sin, ts.exp], [np.tanh, np.sin, np.exp]
    p = soft(x @ g)
    if k:
        p = np.where(p >= np.sort(p, -1)[:, [-k]], p, 0)
        p /= p.sum(-1, keepdims=True)
    wanted = sum(p[:, [e]] * f(x) for e, f in enumerate(meanings))
    made = parse(EXPERTS + f" {{k={k}}}").run(x=x, gate=g, E=experts)
    np.testing.assert_allclose(made["o"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_draft_and_verify_is_the_large_model(greedy):
    x, small, large = normal(9, 4), normal(4, 3), normal(4, 3)
    head = (lambda y: ts.argmax(y, axis=-1)) if greedy else (lambda y: y)
    made = parse(VERIFY).run(x=x, small_model=lambda x: head(x @ small), large_model=lambda x: head(x @ large))
    y = made["y"].numpy()
    assert np.array_equal(y if greedy else y.argmax(-1), (x @ large).argmax(-1))
    assert np.array_equal(made["check"], (x @ large).argmax(-1) == (x @ small).argmax(-1))


def gae_by_hand(r, v, gamma, lam):
    adv, later = np.zeros_like(r), 0.0
    for t in reversed(range(len(r))):
        later = r[t] + gamma * v[t + 1] - v[t] + gamma * lam * later
        adv[t] = later
    return adv


def test_gae():
    r, v = normal(3, 7), normal(3, 8)
    made = parse("a = tile.gae r, v {gamma=0.9, lambda=0.8}\nb = tile.gae r\nc = tile.gae r, u").run(r=r, v=v, u=v[:, :-1])
    ended = np.concatenate([v[:, :-1], np.zeros((3, 1), np.float32)], 1)
    for i in range(3):
        np.testing.assert_allclose(made["a"].numpy()[i], gae_by_hand(r[i], v[i], 0.9, 0.8), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made["b"].numpy()[i], gae_by_hand(r[i], 0 * v[i], 0.99, 0.95), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made["c"].numpy()[i], gae_by_hand(r[i], ended[i], 0.99, 0.95), rtol=1e-4, atol=1e-5)


def test_ppo():
    new, old, adv = normal(6) * 0.5, normal(6) * 0.5, normal(6)
    ratio = np.exp(new - old)
    wanted = np.minimum(ratio * adv, np.clip(ratio, 0.9, 1.1) * adv).mean()
    got = parse("u = tile.ppo new, adv, old {clip=0.1}").run(new=new, adv=adv, old=old)["u"]
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    first = lambda new: parse("u = tile.ppo new, adv").run(new=new, adv=adv)["u"]
    np.testing.assert_allclose(ts.grad(first)(ts.tensor(new)), adv / 6, rtol=1e-5)


@pytest.mark.parametrize("text", [RLHF, RLHF.replace("%y", "%logits")])  # example 6, and E.4 of the appendix
def test_rlhf(text):
    x, w, labels, actions = normal(4, 3), normal(3, 5), np.array([0, 1, 2, 3]), np.array([4, 0, 1, 2])
    made = parse(text).run(x=x, labels=labels, actions=actions, policy=lambda x: x @ w, reward_model=lambda y: ts.max(y, axis=-1))
    logits = x @ w
    assert made["loss"].item() == pytest.approx(-np.log(soft(logits)[np.arange(4), labels]).mean(), rel=1e-4)
    adv = gae_by_hand(logits.max(-1), np.zeros(5), 0.99, 0.95)
    np.testing.assert_allclose(made["adv"], adv, rtol=1e-4)
    assert made["update"].item() == pytest.approx(adv.mean(), rel=1e-4)


@pytest.mark.parametrize(("text", "says"), [
    ("x = = 3", "Expected a value, found '='"), ("x: Tensor[-1]", "Expected a size"), ("y = x $ 3", "'$' cannot stand here"),
    ("y = (x", "Expected ')', the line ends"), ("y = tile.softmax x {axis}", "Expected '='"), ("3 = x", "Expected a name"),
    ("y = x x", "Expected the end of the line")])
def test_texts_that_do_not_parse(text, says):
    with pytest.raises(TextError) as e:
        parse(text)
    shown = str(e.value)
    assert says in shown and text in shown and "at line 1" in shown and "~" in shown


@pytest.mark.parametrize(("text", "bound", "says"), [
    ("y = tile.sofmax x", {"x": 1.0}, "No tile op is called 'sofmax'; did you mean 'softmax'?"),
    ("y = tile.softmax x {axes=1}", {"x": [1.0]}, "tile.softmax: got an unexpected keyword argument 'axes'"),
    ("y = xs + 1", {"xz": 1.0}, "'xs' is not bound"), ("y = x(2)", {"x": ts.tensor(1.0)}, "x is not a function"),
    ("a, b = x + 1", {"x": 1.0}, "2 names for 1 results"), ("y = Σ x", {"x": 1.0}, "Σ needs members of one number, received none"),
    ("y = Σ wi * fi(2.0)", {"w": [1.0], "f": [ts.sin, ts.cos]}, "received {'wi': 1, 'fi': 2}"),
    ("x: Tensor[B, 4]\ny = x", {"x": np.ones((2, 3))}, "4 is 4 by the declaration and 3 in 'x'"),
    ("x: Tensor[B]\nz: Tensor[B]\ny = x", {"x": np.ones(2), "z": np.ones(3)}, "B is 2 by 'x' and 3 in 'z'"),
    ("x: Tensor[B]\ny = x", {}, "'x' is declared and not bound"), ("x: Tensor[B]\ny = x", {"x": np.ones((2, 2))}, "has 2 dimensions"),
    ("y = tile.gate x, w → [a, b]", {"x": ts.ones(2, 2), "w": ts.ones(2, 3)}, "2 names for 3 parts")])
def test_programs_that_do_not_run(text, bound, says):
    with pytest.raises(TextError) as e:
        parse(text).run({k: v if callable(v) or isinstance(v, list) else ts.asarray(v) for k, v in bound.items()})
    assert says in str(e.value)


def test_outputs_of_jit():
    f = parse("a = x + 1\nb = a * 2").jit(["b", "a"])
    assert [v.item() for v in f(ts.tensor(1.0))] == [4.0, 2.0]
    with pytest.raises(TextError, match="No statement makes 'c'"):
        parse("a = x").jit("c")
    with pytest.raises(TextError, match="without statements"):
        parse("x: Tensor[B]").jit()


def test_the_page_shows_what_the_examples_become():
    """Each example's Graph IR on the page is what compiling its text makes now."""
    namespace, shown = {}, 0
    for code, graph in re.findall(r"^```python\n(.*?)^```\n\n```graph\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M):
        exec(code, namespace)
        assert str(namespace["compiled"].graph_ir).strip() == graph.strip()
        shown += 1
    assert shown == 7
