"""Schedule IR: how the work is cut up.

A ``sched`` function is a sequence of launches over explicit, mutable, dense row-major buffers.  Its parameters are
the program's inputs, captured tensors and outputs (buffers).  Function attributes: ``inputs`` / ``outputs`` (how many),
``sizes`` (names of the symbolic sizes, passed to the program as int64), ``arena`` (bytes of the temporaries, a size).

Top level::

    %t = alloc() {offset = <bytes>} : buf<f32[B, 768]>      a temporary; ``offset`` in the arena after memory planning
    %c = constant() {value = dense<…>} : buf<f32[3]>          a small constant
    %v = view(%t) {offset = <elements>} : buf<f32[B*768]>    the same memory under another dense shape
    kernel(%x, %o) {…} do(%x, %o) { … }                       one launch: a nest of loops (below)
    template(%a, %b, %o) {template = "matmul", …} do(…) {…}   one launch: a tile program from ``kernels/``; attributes and
                                                              blocks as :mod:`tessera.scheduling.templates` says
    launch(%a, %o) {callee = "mine", outs = (1,)}             one launch: a user's Tile function in ``functions``
    external(%a, %o) {function = "…", …}                      a host routine (LAPACK)
    cond(%p) do() {…} do() {…}                                launches under control flow; state lives in buffers
    while() do() {… yield(%flag)} do() {…}                    ``%flag``: buf<bool[]>
    loop() {over = ("t", <L>)} do() {…}                       a sequential loop of launches; ``t`` may occur in view offsets
    call(%bufs…) {callee = "layer"}                           an outlined Schedule function
    return()

A ``kernel`` computes with *scalars*.  Its block's arguments are its buffers, in operand order.  Loop variables are
names in the algebra of sizes, so an index is a size expression: ``load(%x) {index = (<i>, <4*j+k>)}``.

=============  =====================================================================================================
attributes     ``name``; ``grid = (("i", <B>), ("j", 768), …)``: the parallel loops, outermost first;
               ``outs = (1, …)``: which operands are written; decisions on top: ``lane`` (the vectorised loop's name),
               ``tile`` (elements of each parallel loop one block covers), ``unroll`` …
``load``       ``(%buf, dyn…) {index = (…), dyn = ("g0", …)}`` -> scalar.  ``dyn`` names int64 operands used in ``index``
               (gathers).  A load never leaves its buffer, whatever its index: guards are explicit
``store``      ``(%buf, %value, dyn…) {index = (…), dyn = (…)}``
``index``      ``() {value = <expr>} : int64``: an index expression as a number
``constant``   ``() {value = 1.5} : f32``
``guard``      ``(%p) do() {… yield(%v)} {…} : T`` with ``other`` attribute: evaluates the block where ``p`` holds, else gives ``other``
``reduce``     ``() {over = (("k", 768), …), combine = "add"} do() {… yield(%v)} : T``.  ``combine``: add mul max min and or
               xor; ``argmax argmin`` (yields value, int64 index; results the same).  Order: the fixed tree of §determinism
``for``        ``() {over = (("j", 768),)} do() {…}``: an inner parallel loop whose body stores
``check``      ``(%ok, %value) {site = n}``: records the first failing (site, value) in the status word
pointwise ops  the names of the op table on scalars: ``add mul exp select convert …``
``yield``      ends a nested block
=============  =====================================================================================================

**Order inside a kernel.**  Points of the grid run in any order and never read what another point stores.  Within a point the
ops run in order, each ``reduce`` and ``for`` to its end before the next op: a load sees what this point stored before.  The body of
a ``reduce`` may store too (softmax stores ``exp(x - max)`` while it sums, and a ``for`` then scales what it stored).

Values defined directly in the kernel's block (loads, reductions, arithmetic) are per point of the grid; values defined
inside ``reduce`` / ``for`` are per point of the inner loops too.  So softmax over the last axis is one kernel with grid
``i``, two reductions over ``j`` and one ``for`` over ``j``.

**Order of reductions** (numeric parameter ``lanes``, an attribute of ``reduce``, fixed by dtype and target): iterations of
the row-major linearised ``over`` loops go round-robin to ``lanes`` accumulators, each summed in order; the lanes are
combined by halving (lane l with lane l + n/2, repeatedly).  ``lanes = 1`` is the plain loop.  Splitting a long
reduction into chunks is two kernels, so it is visible here.
"""
