"""The text of every kind of error: what, where, why, what to do, and no frame of the compiler."""
# ruff: noqa: F821  (sizes in annotations)

import inspect
import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tessera as ts
from tessera import errors

HERE = __file__


def text_of(call, kind=errors.TesseraError):
    with pytest.raises(kind) as e:
        call()
    text = str(e.value)
    assert "src/tessera" not in text, "a compiler frame is shown"
    return text


def line_of(function, marker):
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, s in enumerate(lines) if marker in s)


@ts.function
def attention(w: ts.Tensor["D", "D"], x: ts.Tensor["B", "S", "D"]) -> ts.Tensor["B", "S", "D"]:
    return x @ w


W = ts.ones(768, 768)


@ts.function
def transformer_block(x):
    attention_out = attention(W, x)
    return x + attention_out


def test_shape_error_as_the_specification_shows_it():
    text = text_of(lambda: transformer_block(ts.ones(2, 3, 512)), errors.ShapeError)
    line = line_of(transformer_block.fn, "attention(W, x)")
    code = "    attention_out = attention(W, x)"
    start = f"""\
Error: Shape mismatch in function 'transformer_block' at line {line}

    'x' has size 512 in dimension 2, where D=768 is declared
    Expected: Tensor["B", "S", "D"] where D = 768
    Received: Tensor["B", "S", 512]

    {line - 1} | def transformer_block(x):
    {line} | {code}  # ← Error here
    {' ' * len(str(line))} | {' ' * 20}{'~' * 15}
    {line + 1} |     return x + attention_out

The function 'attention' expects dimension D=768 but received D=512.

Possible fixes:
1. Ensure input tensor has correct dimensions
2. Add a projection layer: x = linear(x, out_dim=768)
3. Update the declared sizes to use D=512

Stack trace:
  File "{HERE}", line {line}, in transformer_block
"""
    assert text.startswith(start), text
    assert text.splitlines()[-1] == "    D = 768 from the argument 'w'"


def test_type_error_names_both_dtypes_and_suggests_a_cast():
    @ts.function
    def compute_in_fp8(x: ts.Tensor["N", ts.fp8_e4m3]):
        return x

    @ts.function
    def mixed_precision_model(x):
        return compute_in_fp8(x)

    text = text_of(lambda: mixed_precision_model(ts.ones(3, dtype=ts.bf16)), errors.DTypeError)
    assert re.match(r"Error: Numerical type mismatch in function 'mixed_precision_model' at line \d+\n", text)
    assert "    Cannot implicitly convert from bf16 to fp8_e4m3\n" in text
    assert "Tensor 'x' has type bf16 but 'compute_in_fp8' expects fp8_e4m3." in text
    assert "compute_in_fp8(x.to(fp8_e4m3))" in text and 'with tessera.precision("mixed"): compute_in_fp8(x)' in text
    assert re.search(r"\| +~{17}\n", text), text  # under compute_in_fp8(x)


def test_the_suggested_casts_work():
    @ts.function
    def compute_in_fp8(x: ts.Tensor["N", ts.fp8_e4m3]):
        return x

    x = ts.ones(3, dtype=ts.bf16)
    text = text_of(lambda: compute_in_fp8(x), errors.DTypeError)
    suggested = [line.partition(". ")[2] for line in text.splitlines() if re.match(r"\d\. ", line)]
    codes = [re.sub(r"^[^:]*: (?=compute|with)", "", s) for s in suggested if "compute_in_fp8(" in s]
    assert len(codes) == 2, suggested
    for code in codes:
        head, colon, call = code.partition("): ")
        scope = {"tessera": ts, "compute_in_fp8": compute_in_fp8, "x": x, "fp8_e4m3": ts.fp8_e4m3}
        exec(f"{head}):\n    out = {call}" if colon else f"out = {code}", scope)
        assert scope["out"].shape == (3,) and scope["out"].dtype is ts.fp8_e4m3


def test_broadcast_error_names_the_dimension_and_both_symbols():
    @ts.function
    def invalid_broadcast(x: ts.Tensor["B", "S"], y: ts.Tensor["B", "K"]):
        return x + y

    text = text_of(lambda: invalid_broadcast.graph_ir, errors.ShapeError)
    assert "Cannot broadcast S with K" in text and "shape mismatch in dimension 1: S vs K" in text
    assert "in function 'invalid_broadcast'" in text and "~~~~~" in text


def test_constraint_error():
    D = ts.sym("D")

    @ts.function(where=[D % 8 == 0])
    def f(x: ts.Tensor["B", D]):
        return x

    text = text_of(lambda: f(ts.ones(2, 12)), errors.ConstraintError)
    assert "Error: Constraint violated" in text and "D%8 == 0 does not hold" in text and "Received: D = 12" in text
    assert text.splitlines()[-1] == "    D = 12 from the argument 'x'"


@ts.jit
def branches(x):
    if (x > 0).any():
        return x
    return -x


def test_tracing_error_shows_the_condition():
    text = text_of(lambda: branches(ts.ones(3)), errors.TracingError)
    line = line_of(branches.fn, "if (x")
    assert f"in function 'branches' at line {line}" in text and "Received: traced bool[]" in text
    assert "ts.where(condition, a, b)" in text and "ts.cond(" in text and "ts.while_loop(" in text
    assert re.search(rf"{line} \|     if \(x > 0\)\.any\(\):  # ← Error here\n +\| +~{{13,17}}\n", text), text


@pytest.mark.parametrize("body, what", [
    (lambda x: float(x.sum()), r"float\(\)"), (lambda x: int(x.sum()), r"int\(\)"), (lambda x: x.sum().item(), r"item\(\)"),
    (lambda x: x.numpy(), r"numpy\(\)"), (lambda x: np.asarray(x), "NumPy array"), (lambda x: [1, 2][x.sum()], "integer index"),
    (lambda x: x.tolist(), "tolist"), (lambda x: range(x.sum()), "integer index"), (lambda x: f"{x.sum():.2f}", r"item\(\)"),
    (lambda x: pickle.dumps(x), "pickling"), (lambda x: x and 1, "condition"), (lambda x: not x, "condition"),
])
def test_every_way_to_ask_for_a_traced_value(body, what):
    text = text_of(lambda: ts.jit(body)(ts.ones(3)), errors.TracingError)
    assert re.search(what, text) and "Possible fixes:\n1. " in text


def test_effect_error():
    @ts.pure
    def f(x):
        return x + ts.random.uniform(3)

    text = text_of(lambda: f(ts.ones(3)), errors.EffectError)
    assert "Error: Effect not allowed in function 'f'" in text
    assert "'random.uniform' has the effect random, which 'f' (pure) does not allow" in text
    assert "Expected: pure" in text and "Received: random" in text and "@ts.effects(['random'])" in text


def test_index_error():
    text = text_of(lambda: ts.ones(2, 3)[0, 5], IndexError)
    assert "Error: Index out of range" in text and "index 5 is out of bounds for axis 1 with size 3" in text
    assert "Received: f32[2, 3]" in text


def test_donation_error():
    f = ts.jit(lambda x: x + 1, donate_argnums=0)
    x = ts.ones(3)
    f(x)
    text = text_of(lambda: x + 1, errors.DonationError)
    assert "Error: Donated tensor used" in text and re.search(r"donated to '<lambda>' at .*test_texts\.py:\d+", text)


def test_argument_error():
    @ts.jit
    def f(x, keepdim=False):
        return x

    text = text_of(lambda: f(ts.ones(2), keepdims=True), errors.ArgumentError)
    assert "Error: Wrong argument" in text and "f() has no argument 'keepdims'; did you mean 'keepdim'?" in text
    assert "Expected: x, keepdim" in text and "Received: keepdims" in text
    with pytest.raises(TypeError):
        f(ts.ones(2), keepdims=True)


def test_unsupported_error():
    from tessera.tracing.recorder import bind
    text = text_of(lambda: bind("sofmax", ts.ones(2)), errors.UnsupportedError)
    assert "Error: Not supported" in text and "there is no op 'sofmax'; did you mean 'softmax'" in text


@pytest.mark.parametrize("kind, title", [
    (errors.CompileError, "Compilation failed"), (errors.KernelError, "Kernel error"), (errors.CheckpointError, "Checkpoint error"),
    (errors.DeviceError, "Device error"), (errors.NumericalError, "Numerical error"), (errors.UnsupportedError, "Not supported"),
])
def test_the_other_kinds(kind, title):
    def raising():
        raise kind("what happened", expected="this", received="that", sentence="The cause.", hints=["one", "two"],
                   origins=["D = 4 from the config"])

    text = text_of(raising, kind)
    line = line_of(raising, "raise kind")
    assert text.startswith(f"Error: {title} in function 'raising' at line {line}\n\n    what happened\n    Expected: this\n"
                           "    Received: that\n")
    assert "\n\nThe cause.\n\nPossible fixes:\n1. one\n2. two\n\nStack trace:\n" in text
    assert text.endswith("\n    D = 4 from the config")


def test_kinds_are_builtin_errors_too():
    pairs = [(errors.ShapeError, ValueError), (errors.ConstraintError, errors.ShapeError), (errors.DTypeError, TypeError),
             (errors.IndexOutOfRangeError, IndexError), (errors.NumericalError, ArithmeticError), (errors.ArgumentError, TypeError)]
    assert all(issubclass(a, b) and issubclass(a, errors.TesseraError) for a, b in pairs)
    assert ts.NumericalError is errors.NumericsError
    codes = [k.code for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.TesseraError)]
    assert all(re.fullmatch("E_[A-Z]+", c) for c in codes)


def test_errors_pickle():
    with pytest.raises(errors.ShapeError) as e:
        ts.ones(3) + ts.ones(4)
    back = pickle.loads(pickle.dumps(e.value))
    assert type(back) is errors.ShapeError and str(back) == str(e.value) and back.hints == e.value.hints


def test_multi_line_expressions_and_wide_characters():
    def f(größe):
        return (größe  # ä
                + ts.ones(4))

    text = text_of(lambda: f(ts.ones(3)))
    row = next(r for r in text.splitlines() if "~" in r)
    above = text.splitlines()[text.splitlines().index(row) - 1]
    assert above[row.index("~"):].startswith("größe")


def test_source_that_is_not_there():
    scope = {"ts": ts}
    exec(compile("def g(x):\n    return x + ts.ones(9)\n", "<string>", "exec"), scope)
    text = text_of(lambda: scope["g"](ts.ones(3)))
    assert 'File "<string>", line 2, in g' in text and "shape mismatch in dimension 0: 3 vs 9" in text


def test_an_uncaught_error_shows_no_compiler_frames(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent("""\
        import tessera as ts
        def step(x):
            return x @ ts.ones(5, 5)
        step(ts.ones(2, 3))
        """))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("tessera.ShapeError\n\nError: Shape mismatch in function 'step' at line 3")
    assert "Traceback" not in run.stderr and "src/tessera" not in run.stderr and "recorder" not in run.stderr
    assert f'  File "{script}", line 3, in step\n  File "{script}", line 4, in <module>' in run.stderr


def test_suggestions():
    assert errors.suggest("keepdims", ["keepdim", "axis"]) == "; did you mean 'keepdim'?"
    assert errors.suggest("zzz", ["keepdim"]) == "" and errors.suggestions("SoftMax", ["softmax"]) == ["softmax"]


# -- bad input -------------------------------------------------------------------------------------------------------------
nan = float("nan")


@pytest.mark.parametrize("call, kind, text", [
    (lambda: ts.zeros(-1), errors.ShapeError, "the size -1 is negative"),
    (lambda: ts.zeros(nan), errors.ShapeError, "nan is not a size"),
    (lambda: ts.zeros(2.5), errors.ShapeError, "2.5 is not an integer"),
    (lambda: ts.zeros("x"), errors.ShapeError, "symbolic"),
    (lambda: ts.zeros("3 4"), errors.ShapeError, "3 4"),
    (lambda: ts.zeros(None), errors.ShapeError, "NoneType"),
    (lambda: ts.zeros(2**40, 2**40), errors.ShapeError, "elements"),
    (lambda: ts.zeros(True), errors.ShapeError, "bool"),
    (lambda: ts.zeros(3, dtype="flot32"), errors.DTypeError, "did you mean"),
    (lambda: ts.zeros(3, dtyp=ts.f32), errors.ArgumentError, "did you mean 'dtype'"),
    (lambda: ts.arange(0, 10, 0), errors.ShapeError, "step"),
    (lambda: ts.arange(nan), errors.ShapeError, "never ends"),
    (lambda: ts.tensor("abc"), errors.DTypeError, "str"),
    (lambda: ts.tensor(["a", "b"]), errors.DTypeError, "no dtype"),
    (lambda: ts.tensor([[1, 2], [3]]), errors.ShapeError, "equal lengths"),
    (lambda: ts.tensor([1, None]), errors.DTypeError, "not all numbers"),
    (lambda: ts.tensor([2**70]), errors.DTypeError, "64 bits"),
    (lambda: ts.tensor(object()), errors.DTypeError, "object"),
    (lambda: ts.from_numpy([1, 2]), errors.ArgumentError, "list"),
    (lambda: ts.from_numpy(np.array(["x"])), errors.DTypeError, "no dtype"),
    (lambda: ts.tensor(np.array(["2020-01-01"], "datetime64[D]")), errors.DTypeError, "no dtype"),
    (lambda: ts.full((2,), "a"), errors.DTypeError, "str"),
    (lambda: ts.ones(2, 3).reshape(4, 2), errors.ShapeError, "6 elements vs 8"),
    (lambda: ts.ones(2, 3).reshape(-1, -1), errors.ShapeError, "-1"),
    (lambda: ts.ones(2, 3).sum(axis=5), errors.IndexOutOfRangeError, "axis 5"),
    (lambda: ts.ones(2, 3) @ ts.ones(4, 5), errors.ShapeError, "3"),
    (lambda: ts.ones(2, dtype=ts.f16) + ts.ones(2, dtype=ts.fp8_e4m3), errors.DTypeError, "fp8_e4m3"),
    (lambda: ts.tensor([1], dtype=ts.uint64) + ts.tensor([1]), errors.DTypeError, "uint64"),
    (lambda: ts.Tensor["B", -1], errors.ShapeError, "-1 is not a size"),
    (lambda: ts.Tensor["B", nan], errors.ShapeError, "nan is not a size"),
    (lambda: ts.Tensor["B-"], errors.ShapeError, "B-"),
    (lambda: ts.Tensor["...", "B", "..."], errors.ShapeError, "only one"),
    (lambda: ts.Tensor[ts.f32, "B"], errors.DTypeError, "last item"),
])
def test_bad_input_is_refused_clearly(call, kind, text):
    got = text_of(call, kind)
    assert text in got, got
    assert HERE in got  # the user's own line
