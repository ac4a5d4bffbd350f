"""Tile IR: one block's program.

A ``tile`` function's parameters are buffers, then one ``int64`` for each symbolic size (named like the size).  Function
attributes: ``grid = (<e0>, <e1>, …)`` (blocks along each axis, sizes over the size names; blocks run in any order),
``sizes`` (their names, in parameter order), ``writes`` (indices of the buffers it writes).

Values are scalars (:class:`ScalarType`; index arithmetic is ``int64``), tiles (:class:`TileType`, static extents) and buffers.

Structure::

    %i   = program_id() {axis = 0} : int64
    %n   = size() {value = <B*S>} : int64                            a size expression as a number
    %r…  = for(%lo, %hi, %step, %init…) do(%i: int64, %c…) {… yield(%c'…)} : types      sequential loop
    %r…  = while(%init…) do(%c…) {… yield(%go, %c…)} do(%c…) {… yield(%c'…)} : types
    %r…  = if(%p) do() {… yield(…)} do() {… yield(…)} : types
    %b   = alloc() : buf<f32[64, 64], local>                        scratch of this block
    return()

Memory.  Offsets are int64 scalars, one for each axis of the buffer.  The tile's axes lie along the buffer axes ``axes``
(default: the trailing ones).  ``check`` lists the buffer axes along which lanes may fall outside: a load gives ``fill``
(default 0) there, a store does nothing.  Lanes along other axes are promised to be inside::

    %t = load(%buf, %o0, %o1) {axes = (0, 1), check = (1,), fill = 0.0} : tile<f32[4, 16]>     (or a scalar type: one element)
    %t = load(%buf, %o0, %o1, %mask) {masked = true, …} : tile<f32[4, 16]>
    store(%buf, %o0, %o1, %t) {axes, check}          store(%buf, %o0, %o1, %t, %mask) {masked = true}
    %t = gather(%buf, %flat) : tile                 elements at row-major offsets (a tile of int64), ``masked`` as above
    scatter(%buf, %flat, %t)                          the reverse; equal offsets within one tile: the last lane wins

Tiles.  Operands of pointwise ops have equal shapes: broadcasting is explicit::

    %t = full() {value = 0.0} : tile        %t = splat(%s) : tile            %t = iota() {axis = 0} : tile<int64[16]>
    %t = broadcast(%t) : tile               (axes of extent 1 stretch; rank is kept)
    %t = reshape(%t) : tile                 %t = transpose(%t) {perm = (1, 0)} : tile
    %t = slice(%t) {starts, limits} : tile  %t = concat(%a, %b) {axis} : tile   %s = extract(%t) {index = (0, 3)} : scalar
    %t = reduce(%t) {axis = 1, combine = "add"} : tile             the axis is removed; a 1-D tile gives a scalar
    %c = dot(%a, %b, %acc) : tile<f32[M, N]>                        acc[m,n] = fma(a[m,k], b[k,n], acc[m,n]), k ascending

``reduce`` combines by halving: while n > 1, with h the largest power of two below n, element l of the first h takes in
element h + l where that exists; then n = h.  ``combine``: add mul max min and or xor.

Pointwise ops carry the op table's names (``add``, ``fma``, ``exp``, ``select``, ``convert`` …) and work on scalars and tiles alike.
The transcendental ones are expanded into polynomials over ``fma``, ``convert``, ``bitcast``, ``shift_left`` … by ``tiling/vmath.py`` before
emission, so that every target and the interpreter compute the same bits.

``check(%ok, %value) {site = n}`` records the first failure (see ``design``, errors at run time); tiles are checked lane by lane.
"""
