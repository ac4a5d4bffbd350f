"""``Tensor``: one class for concrete values and for the values of a program being traced.

A tensor has one field, its *payload*: a numpy array (concrete), a :class:`Traced` (a value of the Graph function being
recorded) or a :class:`Donated` (its memory was given away).  Methods are functions of the op table; they are attached
from one table (``methods.py``) when the package is assembled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DonationError, ShapeError, TracingError
from ..ir.core import TensorType, Value
from ..types import dtypes as dt
from ..types.constraints import as_size
from ..types.dtypes import DType, as_dtype

if TYPE_CHECKING:
    from .recorder import Trace

ndarray = np.ndarray
_OF_NUMPY: dict[Any, DType] = {d.np: d for d in dt.ALL}


class Conversions:
    """How often a tensor took another type or device in place (:func:`tessera.tracing.state.convert`)."""

    count = 0


class Traced:
    """The payload of a traced tensor: ``value`` in the function that ``trace`` records.

    ``weak``: the Python number type (int, float, complex) whose promotion it follows, for numbers given to ``jit``.
    """

    __slots__ = ("trace", "value", "weak")

    def __init__(self, trace: Trace, value: Value, weak: type | None = None):
        self.trace, self.value, self.weak = trace, value, weak

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple([d if type(d) is int else as_size(d) for d in self.value.type.shape])

    @property
    def dtype(self) -> Any:
        return self.value.type.dtype.np


class Donated:
    """The payload of a tensor whose memory a call took over; ``line`` says which call."""

    __slots__ = ("function", "line")

    def __init__(self, function: str, line: str):
        self.function, self.line = function, line

    def __getattr__(self, name: str) -> Any:
        raise DonationError(
            f"this tensor was donated to {self.function!r} at {self.line}",
            sentence="A donated argument's memory is reused by the call, so its old value is gone.",
            hints=["Use the call's result instead", "Remove the argument from donate_argnums", "Donate a copy: x.clone()"])


def _on_cpu(x: Tensor) -> str:
    return "cpu"


DEVICE_OF: Callable[[Any], str] = _on_cpu
"""Where a tensor lives; set when the package is assembled."""


def _lend_nothing(a: Any, dtype: DType) -> Any:
    raise BufferError(f"DLPack has no form for {dtype} here")


LEND: Callable[[Any, DType], Any] = _lend_nothing
"""A host array as a DLPack capsule, in element types that NumPy's own lacks; set when the package is assembled."""


class Tensor:
    """A multi-dimensional array, concrete or traced.

    ``Tensor(data, dtype=None)`` copies numbers, nested lists and arrays.  ``Tensor["B", "S", 768, ts.bf16]`` is an
    annotation: sizes (integers, names, expressions such as ``"3*D"``, ``"?"`` for any size, ``"..."`` for any number of
    axes), then optionally an element type or numerical policy.

    Tensors are values: ``x[i] = v`` changes this tensor alone, never another one that shares its memory.
    """

    __slots__ = ("__weakref__", "_p")
    _p: Any

    def __init__(self, *data: Any, **dtype: Any):
        from ..errors.boundary import guarded
        from .creation import tensor
        self._p = guarded(tensor, "Tensor")(*data, **dtype)._p

    def __class_getitem__(cls, items: Any) -> Any:
        from .annotations import TensorSpec
        return TensorSpec.parse(items)

    # -- facts -----------------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes: integers; a traced tensor may have symbolic ones."""
        shape: tuple[int, ...] = self._p.shape
        return shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return _OF_NUMPY[self._p.dtype]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._p.shape)

    rank = ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        n = 1
        for d in self._p.shape:
            n = n * d
        return n

    def numel(self) -> int:
        """The number of elements."""
        return self.size

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def device(self) -> str:
        """Where the tensor lives: a :class:`tessera.device.Device`."""
        return DEVICE_OF(self)

    @property
    def is_traced(self) -> bool:
        """True inside a function being traced: shape and dtype are known, values are not."""
        return type(self._p) is Traced

    @property
    def type(self) -> TensorType:
        """Dtype and shape as the IR's type."""
        p = self._p
        return p.value.type if type(p) is Traced else TensorType(_OF_NUMPY[p.dtype], p.shape)

    # -- values ----------------------------------------------------------------------------------------------------------
    def _concrete(self, what: str) -> np.ndarray[Any, Any]:
        """The array.

        Raises:
            TracingError: the tensor is traced; ``what`` says what was asked of it.
        """
        p = self._p
        if type(p) is ndarray:
            return p
        if type(p) is Donated:
            p.shape  # noqa: B018  raises, naming the call
        if type(p) is not Traced:  # on a device
            host: np.ndarray[Any, Any] = p.to_host()
            return host
        raise TracingError(
            f"{what} needs the value of a traced tensor", received=f"traced {self.type}",
            sentence="Inside a function that is being traced, a tensor stands for every value it may have.",
            hints=["Keep the computation in tensors", "Pass a number that the function's structure depends on through "
                   "static_argnums or static_argnames", "Move this line out of the traced function"])

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a read-only NumPy array without a copy (bf16 and smaller floats: ml_dtypes).

        Raises:
            TracingError: the tensor is traced.
        """
        view = self._concrete("numpy()").view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        a = self._concrete("conversion to a NumPy array")
        if dtype is not None and np.dtype(dtype) != a.dtype:
            if copy is False:
                raise ValueError("a conversion of dtype needs a copy")
            return a.astype(dtype)
        if copy:
            return a.copy()
        view = a.view()
        view.flags.writeable = False
        return view

    def item(self) -> Any:
        """The only element as a Python number.

        Raises:
            ShapeError: there is not exactly one element.
            TracingError: the tensor is traced.
        """
        a = self._concrete("item()")
        if a.size != 1:
            raise ShapeError(f"item() needs one element, and this tensor has {a.size}", received=str(self.type),
                             hints=["Index one element first: x[i].item()", "Use tolist() for all elements"])
        v = a.reshape(()).item()
        return v if isinstance(v, bool | int | float | complex) else (float(v) if self.dtype.is_float else int(v))

    def tolist(self) -> Any:
        """All elements as nested lists of Python numbers."""
        a = self._concrete("tolist()")
        if self.dtype.is_float and self.dtype.bits < 32:
            a = a.astype(np.float32)
        elif self.dtype.bits == 4:
            a = a.astype(np.int8)
        return a.tolist()

    def __bool__(self) -> bool:
        p = self._p
        if type(p) is not ndarray:
            self._refuse_bool()
            p = self._concrete("a condition")
        if p.size != 1:
            raise ShapeError(f"the truth value of a tensor with {p.size} elements is ambiguous", received=str(self.type),
                             sentence="A condition needs one truth value.", hints=["Use x.any() or x.all()"])
        return bool(p.reshape(())[()])

    def _refuse_bool(self) -> None:
        if type(self._p) is not Traced:
            self._concrete("a condition")
            return
        raise TracingError(
            "a Python condition needs the value of a traced tensor", received=f"traced {self.type}",
            sentence="'if', 'while', 'and', 'or', 'not' and 'assert' decide while the function is traced, before there are "
                     "values.",
            hints=["Choose elementwise: ts.where(condition, a, b)", "Branch inside the program: ts.cond(condition, f, g, *args)",
                   "Loop inside the program: ts.while_loop(cond, body, init)",
                   "Pass the deciding number through static_argnums"])

    def __int__(self) -> int:
        self._concrete("int()")
        return int(self.item().real if self.dtype.is_complex else self.item())

    def __index__(self) -> int:
        a = self._concrete("use as an integer index")
        if self.dtype.is_float or self.dtype.is_complex or a.size != 1:
            raise TypeError(f"only a tensor with one integer can be an index, not {self.type}")
        return int(self.item())

    def __float__(self) -> float:
        self._concrete("float()")
        return float(self.item())

    def __complex__(self) -> complex:
        self._concrete("complex()")
        return complex(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a scalar tensor: it has no axes")
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("a scalar tensor cannot be iterated over")
        return iter([self[i] for i in range(int(self.shape[0]))])

    def __contains__(self, x: Any) -> bool:
        return bool((self._concrete("'in'") == np.asarray(x)).any())

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (np.array(self._concrete("pickling"), order="C"), self.dtype.name)  # of rank 0 too

    def __copy__(self) -> Tensor:
        return make(self._p)

    def __deepcopy__(self, memo: Any) -> Tensor:
        from .placed import beside
        return beside(self, self._concrete("copying").copy())

    def clone(self) -> Tensor:
        """The same value in memory of its own (a traced tensor: itself under another name)."""
        if type(self._p) is Traced:
            return make(self._p)
        from .creation import copied
        from .placed import beside
        return beside(self, copied(self._concrete("clone()")))

    def detach(self) -> Tensor:
        """The same value; derivatives are functions of functions here, so a tensor never holds any."""
        return make(self._p)

    def cpu(self) -> Tensor:
        """The values on the CPU: this tensor where it lives there already.

        Raises:
            DeviceError: the tensor is of a traced function that runs on another device.
        """
        p = self._p
        return self if type(p) is ndarray else self.to("cpu") if type(p) is Traced else make(self._concrete("cpu()"))

    def contiguous(self) -> Tensor:
        """The same value, row-major."""
        p = self._p
        return make(np.ascontiguousarray(p)) if type(p) is ndarray and not p.flags.c_contiguous else self

    def is_contiguous(self) -> bool:
        """True when the elements lie row-major without gaps."""
        p = self._p
        return bool(p.flags.c_contiguous) if type(p) is ndarray else True

    # -- exchange --------------------------------------------------------------------------------------------------------
    def __dlpack__(self, *, stream: Any = None, **kwargs: Any) -> Any:
        """A DLPack capsule that shares the memory (of a view or a borrowed array: of a copy)."""
        if self._placed:
            return self._p.dlpack()
        a = self._concrete("DLPack exchange")
        if stream is not None:
            raise BufferError("a CPU tensor has no stream")
        if self.dtype.bits < 32 and self.dtype.is_float and self.dtype.name != "f16":  # which NumPy does not lend
            return LEND(a, self.dtype)
        if not a.flags.writeable:
            a = a.copy()
        kwargs.pop("dl_device", None)
        kwargs.pop("max_version", None)
        return a.__dlpack__(**{k: v for k, v in kwargs.items() if v is not None})

    def __dlpack_device__(self) -> tuple[int, int]:
        place: tuple[int, int] = self._p.dlpack_device() if self._placed else (1, 0)
        return place

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if not self._placed:
            raise AttributeError("__cuda_array_interface__")  # this is how other libraries ask whether it lives on a GPU
        view: dict[str, Any] = self._p.cuda_interface()
        return view

    @property
    def _placed(self) -> bool:
        """True where the memory is a device's."""
        return type(self._p) not in (ndarray, Traced, Donated)

    def __repr__(self) -> str:
        from .display import show
        return show(self)

    def __getattr__(self, name: str) -> Any:  # only for what is not there
        if name.startswith("_"):
            raise AttributeError(name)
        from .foreign import missing
        raise AttributeError(missing(name), name=name, obj=self)

    if TYPE_CHECKING:  # attached from the op table by methods.py
        T: Tensor
        mT: Tensor
        real: Tensor
        imag: Tensor

        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __lshift__(self, other: Any) -> Tensor: ...
        def __rshift__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def to(self, dtype: Any, saturate: bool = False, rounding: Any = None, key: Any = None) -> Tensor: ...
        def sum(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tensor: ...
        def mean(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tensor: ...
        def max(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tensor: ...
        def min(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tensor: ...
        def any(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tensor: ...
        def all(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tensor: ...


_new = object.__new__


def make(payload: Any) -> Tensor:
    """A tensor around a payload (array or :class:`Traced`); nothing is checked or copied."""
    t = _new(Tensor)
    t._p = payload
    return t


def _unpickle(array: np.ndarray[Any, Any], dtype: str) -> Tensor:
    return make(array if array.dtype == as_dtype(dtype).np else array.view(as_dtype(dtype).np))
