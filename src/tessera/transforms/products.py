"""Products are made the way round in which they are used."""

from __future__ import annotations

from ..ir.core import Block, Copier, Function, Op, Value, rewrite, uses
from ..types.dims import DimLike, product
from .rewriting import everywhere, producer


def turn_products(fn: Function) -> Function:
    """A product that is only transposed becomes the product of its operands the other way round.

    ``x @ w.T`` has such a product in its backward pass: the gradient of ``w``.  Every element is the same chain over k, and
    multiplication commutes, so its bits are the same.
    """
    return everywhere(fn, _turn)


def _turn(fn: Function) -> Function:
    table = uses(fn.body)
    home: dict[Op, Block] = {}

    def enter(block: Block) -> None:
        for op in block.ops:
            home[op] = block
            for b in op.blocks:
                enter(b)

    enter(fn.body)

    def rule(c: Copier, op: Op) -> list[Value] | None:
        dot = op.operands[0].op if op.name == "transpose" else None
        if dot is None or dot.name != "dot_general" or home[dot] is not home[op] or len(table[dot.results[0]]) != 1:
            return None
        if tuple(op.attrs["perm"]) != _swap(dot):
            return None
        attrs = dict(dot.attrs)
        for what in ("contract", "batch"):
            attrs[f"lhs_{what}"], attrs[f"rhs_{what}"] = dot.attrs[f"rhs_{what}"], dot.attrs[f"lhs_{what}"]
        operands = [c[dot.operands[1]], c[dot.operands[0]]]
        return [c.builder.value("dot_general", operands, op.results[0].type, attrs, (), dot.loc)]

    return rewrite(fn, rule)


def _swap(dot: Op) -> tuple[int, ...]:
    """The permutation of a product's result that exchanges the free axes of its operands."""
    batch = len(dot.attrs["lhs_batch"])
    left, right = (v.type.rank - batch - len(dot.attrs[f"{side}_contract"]) for side, v in zip(("lhs", "rhs"), dot.operands, strict=True))
    first = batch + left
    return (*range(batch), *range(first, first + right), *range(batch, first))


def contract_as_it_lies(fn: Function) -> Function:
    """A vector by a transposed matrix contracts the matrix along its rows in memory.

    Such a product is a plain reduction, which takes several sums side by side where it runs along memory; through the transpose it
    would gather one element of each of many rows at a time.
    """
    return everywhere(fn, lambda f: rewrite(f, _contract))


def _contract(c: Copier, op: Op) -> list[Value] | None:
    if op.name != "dot_general" or op.attrs["lhs_batch"] or not any(_free_size(op, i) == 1 for i in (0, 1)):
        return None
    attrs, operands = dict(op.attrs), [c[v] for v in op.operands]
    for i, side in enumerate(("lhs", "rhs")):
        inner = producer(op.operands[i], "transpose")
        if inner is not None and inner.results[0].type.rank == 2:
            operands[i] = c[inner.operands[0]]
            attrs[f"{side}_contract"] = tuple(inner.attrs["perm"][axis] for axis in attrs[f"{side}_contract"])
    if operands == [c[v] for v in op.operands]:
        return None
    return [c.builder.value("dot_general", operands, op.results[0].type, attrs, (), op.loc)]


def _free_size(op: Op, i: int) -> DimLike:
    contract = op.attrs[("lhs_contract", "rhs_contract")[i]]
    return product(s for axis, s in enumerate(op.operands[i].type.shape) if axis not in contract)


__all__ = ["contract_as_it_lies", "turn_products"]
