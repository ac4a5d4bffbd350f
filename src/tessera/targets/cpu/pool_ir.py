"""The native half of the thread pool, as LLVM IR: workers, barrier, work sharing, and the entry of every call.

============================================================  ==========================================================
``worker(pool, tid)``                                         what a pool thread sits in until the pool is stopped
``barrier(ctx, tid, threads)``                                all threads of the call meet; the work counters restart at 0
``claim(ctx, tid, threads, slot, n, chunk, last) -> {b, e}``  the next blocks for this thread; ``b >= e``: none are left
``poll(ctx)``                                                 lets Python run its signal handlers
``run(frame) -> code``                                        runs the frame's program, with the pool if it is free
``call(frame, tuple) -> code``                                checks the arrays, then ``run``
``stop(pool) -> i32``                                         sends the workers home; 0: a call is under way, try again
============================================================  ==========================================================

Symbols are prefixed ``ts_``.  A thread first takes blocks from its own share of a launch (so that in consecutive
launches the same core works on the same rows), then from the shares of the others.  Who runs a block never changes its
result.  Waiting is spinning with ``pause``, then a futex.  One call owns the pool; a caller that finds it owned runs
alone.

A call never waits for a thread that has not shown up.  Workers *join* a job while it is open; the caller closes it at its first
meeting (after waiting a little where the work is worth it) or at its end, and only those who joined are waited for.  Until
then nothing has been overwritten, so a worker that comes late simply walks through the same launches and finds what is
left of them.
"""

from __future__ import annotations

from . import abi, frame

# The pool's memory.  Words that different threads write lie on lines of their own.
GENERATION, SLEEPERS = 0, 4  # u32: jobs started | workers asleep
OWNER = 64  # u32: 1 while a call uses the pool, and for ever once it is stopped
FUNCTION, CONTEXT, QUIT, THREADS = 128, 136, 144, 152  # the job; u32; i64 threads, the caller included
JOIN = 192  # u64: job number << 32 | CLOSED | threads that take part
FINISHED, FINISH_SLEEPERS, LEFT = 256, 260, 264  # u32: changes whenever a worker leaves a job | callers asleep | how many left
ARRIVED = 320  # u32: threads at the barrier
MEETINGS, MEETING_SLEEPERS = 384, 388  # u32: barriers passed | threads asleep there
COUNTERS = 448  # i64 [SLOTS][threads], one line each: blocks taken from a thread's share
SLOTS = 8
LINE = 64
CLOSED = 1 << 31


def pool_bytes(threads: int) -> int:
    return COUNTERS + SLOTS * threads * LINE


_ARCH = {
    "x86_64": {"pause": "call void @llvm.x86.sse2.pause()", "futex": 202, "spins": 4000},
    "aarch64": {"pause": "call void @llvm.aarch64.hint(i32 1)", "futex": 98, "spins": 20000},
}


def pool_ir(arch: str) -> str:
    """The module's text for ``"x86_64"`` or ``"aarch64"``."""
    a = _ARCH[arch]
    parts = [_WAIT, _CLAIM, _BARRIER, _WORKER, _POLL, _RUN, _CALL]
    text = "\n".join(parts)
    for name, value in a.items():
        text = text.replace(f"${name}$", str(value))
    for module in (abi, frame):
        for name in dir(module):
            if name.isupper():
                text = text.replace(f"${module.__name__.rsplit('.', 1)[1]}.{name}$", str(getattr(module, name)))
    for name, value in globals().items():
        if name.isupper() and isinstance(value, int):
            text = text.replace(f"${name}$", str(value))
    if "$" in text:
        at = text.index("$")
        raise ValueError(f"unfilled name in the pool's IR: {text[at:at + 30]!r}")
    return text


# Spin until *word != old, then sleep; the futex itself compares again, and whoever changes the word looks for sleepers
# after it (both sequentially consistent), so no wake-up is lost.
_WAIT = """
declare i64 @syscall(i64, ...)
define internal void @await_change(ptr %word, i32 %old, ptr %sleepers) noinline nounwind {
entry:
  br label %spin
spin:
  %k = phi i32 [0, %entry], [%k1, %again], [0, %slept]
  %v = load atomic i32, ptr %word acquire, align 4
  %changed = icmp ne i32 %v, %old
  br i1 %changed, label %out, label %wait
wait:
  %long = icmp ugt i32 %k, $spins$
  br i1 %long, label %sleep, label %again
again:
  $pause$
  %k1 = add i32 %k, 1
  br label %spin
sleep:
  %s0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %r = call i64 (i64, ...) @syscall(i64 $futex$, ptr %word, i64 128, i32 %old, ptr null, ptr null, i64 0)
  %s1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %slept
slept:
  br label %spin
out:
  ret void
}
define internal void @announce(ptr %word, ptr %sleepers) nounwind {
entry:
  %old = atomicrmw add ptr %word, i32 1 seq_cst
  %s = load atomic i32, ptr %sleepers seq_cst, align 4
  %any = icmp ne i32 %s, 0
  br i1 %any, label %wake, label %out
wake:
  %r = call i64 (i64, ...) @syscall(i64 $futex$, ptr %word, i64 129, i32 2147483647, ptr null, ptr null, i64 0)
  br label %out
out:
  ret void
}
"""

_CLAIM = """
define {i64, i64} @ts_claim(ptr %ctx, i64 %tid, i64 %threads, i64 %slot, i64 %n, i64 %chunk, i64 %last) nounwind {
entry:
  %none0 = insertvalue {i64, i64} poison, i64 %n, 0
  %none = insertvalue {i64, i64} %none0, i64 %n, 1
  %all = insertvalue {i64, i64} %none, i64 0, 0
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %one, label %many
one:
  %here = or i64 %tid, %last
  %mine = icmp eq i64 %here, 0
  %r1 = select i1 %mine, {i64, i64} %all, {i64, i64} %none
  ret {i64, i64} %r1
many:
  %team.p = getelementptr i8, ptr %ctx, i64 $frame.TEAM$
  %team = load ptr, ptr %team.p
  %row = mul i64 %slot, %threads
  %row.b = mul i64 %row, $LINE$
  %base.o = add i64 %row.b, $COUNTERS$
  %base = getelementptr i8, ptr %team, i64 %base.o
  br label %victim
victim:
  %v = phi i64 [0, %many], [%v1, %next]
  %w0 = add i64 %tid, %v
  %wrap = icmp uge i64 %w0, %threads
  %w1 = sub i64 %w0, %threads
  %w = select i1 %wrap, i64 %w1, i64 %w0
  %lo.n = mul i64 %n, %w
  %lo = udiv i64 %lo.n, %threads
  %hi.n = add i64 %lo.n, %n
  %hi = udiv i64 %hi.n, %threads
  %c.o = mul i64 %w, $LINE$
  %c = getelementptr i8, ptr %base, i64 %c.o
  %seen = load atomic i64, ptr %c monotonic, align 8
  %at = add i64 %lo, %seen
  %left = icmp ult i64 %at, %hi
  br i1 %left, label %take, label %next
take:
  %got = atomicrmw add ptr %c, i64 %chunk monotonic
  %b = add i64 %lo, %got
  %ok = icmp ult i64 %b, %hi
  br i1 %ok, label %have, label %next
have:
  %e0 = add i64 %b, %chunk
  %e = call i64 @llvm.umin.i64(i64 %e0, i64 %hi)
  %r2 = insertvalue {i64, i64} poison, i64 %b, 0
  %r3 = insertvalue {i64, i64} %r2, i64 %e, 1
  ret {i64, i64} %r3
next:
  %v1 = add i64 %v, 1
  %more = icmp ult i64 %v1, %threads
  br i1 %more, label %victim, label %done
done:
  ret {i64, i64} %none
}
"""

_BARRIER = """
define internal void @clear_counters(ptr %pool, i64 %threads) nounwind {
entry:
  %count = mul i64 %threads, $SLOTS$
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
  %o0 = mul i64 %i, $LINE$
  %o = add i64 %o0, $COUNTERS$
  %p = getelementptr i8, ptr %pool, i64 %o
  store i64 0, ptr %p
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %count
  br i1 %more, label %loop, label %out
out:
  ret void
}
; Let nobody else join; gives how many take part.
define internal i32 @close(ptr %pool) nounwind {
entry:
  %p = getelementptr i8, ptr %pool, i64 $JOIN$
  %old = atomicrmw or ptr %p, i64 $CLOSED$ acq_rel
  %low = trunc i64 %old to i32
  %n = and i32 %low, 65535
  ret i32 %n
}
; Wait, but not for long, until all threads have joined.
define internal void @be_patient(ptr %pool, i64 %patience, i64 %threads) nounwind {
entry:
  %p = getelementptr i8, ptr %pool, i64 $JOIN$
  br label %look
look:
  %k = phi i64 [0, %entry], [%k1, %again]
  %v = load atomic i64, ptr %p monotonic, align 8
  %n = and i64 %v, 65535
  %all = icmp uge i64 %n, %threads
  %tired = icmp uge i64 %k, %patience
  %stop = or i1 %all, %tired
  br i1 %stop, label %out, label %again
again:
  $pause$
  %k1 = add i64 %k, 1
  br label %look
out:
  ret void
}
; The caller (thread 0) closes the job before it arrives, so whoever arrives last sees how many were expected.
define void @ts_barrier(ptr %ctx, i64 %tid, i64 %threads) nounwind {
entry:
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %out, label %meet
meet:
  %team.p = getelementptr i8, ptr %ctx, i64 $frame.TEAM$
  %team = load ptr, ptr %team.p
  %word = getelementptr i8, ptr %team, i64 $MEETINGS$
  %sleepers = getelementptr i8, ptr %team, i64 $MEETING_SLEEPERS$
  %count = getelementptr i8, ptr %team, i64 $ARRIVED$
  %join = getelementptr i8, ptr %team, i64 $JOIN$
  %g = load atomic i32, ptr %word acquire, align 4
  %j0 = load atomic i64, ptr %join acquire, align 8
  %closed.bit = and i64 %j0, $CLOSED$
  %open = icmp eq i64 %closed.bit, 0
  %zero = icmp eq i64 %tid, 0
  %first = and i1 %open, %zero
  br i1 %first, label %shut, label %arrive
shut:
  %patience.p = getelementptr i8, ptr %ctx, i64 $frame.PATIENCE$
  %patience = load i64, ptr %patience.p
  call void @be_patient(ptr %team, i64 %patience, i64 %threads)
  %joined = call i32 @close(ptr %team)
  br label %arrive
arrive:
  %a = atomicrmw add ptr %count, i32 1 acq_rel
  %a1 = add i32 %a, 1
  %j = load atomic i64, ptr %join acquire, align 8
  %j.closed = and i64 %j, $CLOSED$
  %is.closed = icmp ne i64 %j.closed, 0
  %j32 = trunc i64 %j to i32
  %t = and i32 %j32, 65535
  %full = icmp eq i32 %a1, %t
  %last = and i1 %full, %is.closed
  br i1 %last, label %open.all, label %wait
open.all:
  store atomic i32 0, ptr %count monotonic, align 4
  call void @clear_counters(ptr %team, i64 %threads)
  call void @announce(ptr %word, ptr %sleepers)
  br label %out
wait:
  call void @await_change(ptr %word, i32 %g, ptr %sleepers)
  br label %out
out:
  ret void
}
"""

_WORKER = """
define void @ts_worker(ptr %pool, i64 %tid, i32 %first) nounwind {
entry:
  %sleepers = getelementptr i8, ptr %pool, i64 $SLEEPERS$
  %quit.p = getelementptr i8, ptr %pool, i64 $QUIT$
  %fn.p = getelementptr i8, ptr %pool, i64 $FUNCTION$
  %ctx.p = getelementptr i8, ptr %pool, i64 $CONTEXT$
  %join = getelementptr i8, ptr %pool, i64 $JOIN$
  %left = getelementptr i8, ptr %pool, i64 $LEFT$
  %finished = getelementptr i8, ptr %pool, i64 $FINISHED$
  %finish.sleepers = getelementptr i8, ptr %pool, i64 $FINISH_SLEEPERS$
  br label %idle
idle:                                              ; %g: the generation seen last; %job: the job looked at last
  %g = phi i32 [%first, %entry], [%g1, %rest]
  %job = phi i64 [0, %entry], [%number, %rest]
  call void @await_change(ptr %pool, i32 %g, ptr %sleepers)
  %g1 = load atomic i32, ptr %pool acquire, align 4
  %q = load atomic i32, ptr %quit.p acquire, align 4
  %stop = icmp ne i32 %q, 0
  br i1 %stop, label %out, label %look
look:
  %j = load atomic i64, ptr %join acquire, align 8
  br label %try
try:
  %v = phi i64 [%j, %look], [%seen, %retry]
  %number = lshr i64 %v, 32
  %same = icmp eq i64 %number, %job
  %closed.bit = and i64 %v, $CLOSED$
  %closed = icmp ne i64 %closed.bit, 0
  %no = or i1 %same, %closed
  br i1 %no, label %rest, label %enter
enter:
  %v1 = add i64 %v, 1
  %x = cmpxchg ptr %join, i64 %v, i64 %v1 acq_rel acquire
  %seen = extractvalue {i64, i1} %x, 0
  %in = extractvalue {i64, i1} %x, 1
  br i1 %in, label %work, label %retry
retry:
  br label %try
work:
  %fn = load ptr, ptr %fn.p
  %ctx = load ptr, ptr %ctx.p
  call void %fn(ptr %ctx, i64 %tid)
  %before = atomicrmw add ptr %left, i32 1 acq_rel
  call void @announce(ptr %finished, ptr %finish.sleepers)
  br label %rest
rest:
  br label %idle
out:
  ret void
}
define i32 @ts_stop(ptr %pool) nounwind {
entry:
  %owner = getelementptr i8, ptr %pool, i64 $OWNER$
  %x = cmpxchg ptr %owner, i32 0, i32 1 acquire monotonic
  %ok = extractvalue {i32, i1} %x, 1
  br i1 %ok, label %go, label %busy
busy:
  ret i32 0
go:
  %quit = getelementptr i8, ptr %pool, i64 $QUIT$
  store atomic i32 1, ptr %quit release, align 4
  %sleepers = getelementptr i8, ptr %pool, i64 $SLEEPERS$
  call void @announce(ptr %pool, ptr %sleepers)
  ret i32 1
}
"""

# Python runs its signal handlers; an exception from one ends the program's loops and is raised when the call is over.
_POLL = """
declare i32 @PyGILState_Ensure()
declare void @PyGILState_Release(i32)
declare i32 @PyErr_CheckSignals()
declare void @PyErr_Fetch(ptr, ptr, ptr)
define void @ts_poll(ptr %ctx) nounwind {
entry:
  %held = call i32 @PyGILState_Ensure()
  %r = call i32 @PyErr_CheckSignals()
  %raised = icmp ne i32 %r, 0
  br i1 %raised, label %keep, label %out
keep:
  %type = getelementptr i8, ptr %ctx, i64 $frame.ERROR$
  %value = getelementptr i8, ptr %type, i64 8
  %trace = getelementptr i8, ptr %type, i64 16
  call void @PyErr_Fetch(ptr %type, ptr %value, ptr %trace)
  %stop = getelementptr i8, ptr %ctx, i64 $frame.STOP$
  store i64 $frame.INTERRUPTED$, ptr %stop
  br label %out
out:
  call void @PyGILState_Release(i32 %held)
  ret void
}
"""

_RUN = """
define internal i32 @verdict(ptr %frame) nounwind {
entry:
  %s = load i64, ptr %frame
  %ok = icmp eq i64 %s, -1
  %r = select i1 %ok, i32 $frame.DONE$, i32 $frame.CHECK_FAILED$
  ret i32 %r
}
define i32 @ts_run(ptr %frame) nounwind {
entry:
  store i64 -1, ptr %frame
  %fn.p = getelementptr i8, ptr %frame, i64 $frame.PROGRAM$
  %fn = load ptr, ptr %fn.p
  %threads.p = getelementptr i8, ptr %frame, i64 $abi.THREADS$
  %team.p = getelementptr i8, ptr %frame, i64 $frame.TEAM$
  %stop.p = getelementptr i8, ptr %frame, i64 $frame.STOP$
  store i64 0, ptr %stop.p
  %par.p = getelementptr i8, ptr %frame, i64 $frame.PARALLEL$
  %par = load i64, ptr %par.p
  %want = icmp ne i64 %par, 0
  br i1 %want, label %look, label %alone
look:
  %cell.p = getelementptr i8, ptr %frame, i64 $frame.POOL_CELL$
  %cell = load ptr, ptr %cell.p
  %pool = load atomic ptr, ptr %cell acquire, align 8
  %has = icmp ne ptr %pool, null
  br i1 %has, label %try, label %alone
try:
  %owner = getelementptr i8, ptr %pool, i64 $OWNER$
  %x = cmpxchg ptr %owner, i32 0, i32 1 acquire monotonic
  %got = extractvalue {i32, i1} %x, 1
  br i1 %got, label %together, label %alone
alone:
  store i64 1, ptr %threads.p
  store ptr null, ptr %team.p
  call void %fn(ptr %frame, i64 0)
  %r0 = call i32 @verdict(ptr %frame)
  ret i32 %r0
together:
  %pool.threads.p = getelementptr i8, ptr %pool, i64 $THREADS$
  %threads = load i64, ptr %pool.threads.p
  store i64 %threads, ptr %threads.p
  store ptr %pool, ptr %team.p
  call void @clear_counters(ptr %pool, i64 %threads)
  %job.fn = getelementptr i8, ptr %pool, i64 $FUNCTION$
  store ptr %fn, ptr %job.fn
  %job.ctx = getelementptr i8, ptr %pool, i64 $CONTEXT$
  store ptr %frame, ptr %job.ctx
  %left = getelementptr i8, ptr %pool, i64 $LEFT$
  store atomic i32 0, ptr %left monotonic, align 4
  %join = getelementptr i8, ptr %pool, i64 $JOIN$
  %j = load atomic i64, ptr %join monotonic, align 8
  %number = lshr i64 %j, 32
  %number1 = add i64 %number, 1
  %high = shl i64 %number1, 32
  %open = or i64 %high, 1
  store atomic i64 %open, ptr %join release, align 8
  %sleepers = getelementptr i8, ptr %pool, i64 $SLEEPERS$
  call void @announce(ptr %pool, ptr %sleepers)
  call void %fn(ptr %frame, i64 0)
  %joined = call i32 @close(ptr %pool)
  %others = sub i32 %joined, 1
  %finished = getelementptr i8, ptr %pool, i64 $FINISHED$
  %finish.sleepers = getelementptr i8, ptr %pool, i64 $FINISH_SLEEPERS$
  br label %gather
gather:
  %f = load atomic i32, ptr %finished acquire, align 4
  %gone = load atomic i32, ptr %left acquire, align 4
  %all = icmp eq i32 %gone, %others
  br i1 %all, label %over, label %wait
wait:
  call void @await_change(ptr %finished, i32 %f, ptr %finish.sleepers)
  br label %gather
over:
  store atomic i32 0, ptr %owner release, align 4
  %r1 = call i32 @verdict(ptr %frame)
  ret i32 %r1
}
"""

_CALL = """
define i32 @ts_call(ptr %frame, ptr %tuple) nounwind {
entry:
  %n.p = getelementptr i8, ptr %frame, i64 $frame.COUNT$
  %n = load i64, ptr %n.p
  %expect.p = getelementptr i8, ptr %frame, i64 $frame.EXPECT$
  %expect = load ptr, ptr %expect.p
  %type.p = getelementptr i8, ptr %frame, i64 $frame.ARRAY_TYPE$
  %type = load ptr, ptr %type.p
  %buffers.p = getelementptr i8, ptr %frame, i64 $abi.BUFFERS$
  %buffers = load ptr, ptr %buffers.p
  %items = getelementptr i8, ptr %tuple, i64 $frame.TUPLE_ITEMS$
  br label %head
head:
  %i = phi i64 [0, %entry], [%i1, %fine]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %body, label %go
body:
  %item.p = getelementptr ptr, ptr %items, i64 %i
  %item = load ptr, ptr %item.p
  %x.o = mul i64 %i, $frame.EXPECT_BYTES$
  %x = getelementptr i8, ptr %expect, i64 %x.o
  %type.q = getelementptr i8, ptr %item, i64 $frame.OBJECT_TYPE$
  %type.i = load ptr, ptr %type.q
  %is.array = icmp eq ptr %type.i, %type
  br i1 %is.array, label %array, label %wrong
array:
  %dtype.q = getelementptr i8, ptr %item, i64 $frame.ARRAY_DTYPE$
  %dtype = load ptr, ptr %dtype.q
  %dtype.x = load ptr, ptr %x
  %same.dtype = icmp eq ptr %dtype, %dtype.x
  %rank.q = getelementptr i8, ptr %item, i64 $frame.ARRAY_RANK$
  %rank = load i32, ptr %rank.q
  %rank.l = sext i32 %rank to i64
  %rank.p = getelementptr i8, ptr %x, i64 $frame.EXPECT_RANK$
  %rank.x = load i64, ptr %rank.p
  %same.rank = icmp eq i64 %rank.l, %rank.x
  %flags.q = getelementptr i8, ptr %item, i64 $frame.ARRAY_FLAGS$
  %flags = load i32, ptr %flags.q
  %flags.p = getelementptr i8, ptr %x, i64 $frame.EXPECT_FLAGS$
  %flags.x = load i32, ptr %flags.p
  %flags.both = and i32 %flags, %flags.x
  %same.flags = icmp eq i32 %flags.both, %flags.x
  %ok0 = and i1 %same.dtype, %same.rank
  %ok1 = and i1 %ok0, %same.flags
  br i1 %ok1, label %sizes, label %wrong
sizes:
  %sizes.q = getelementptr i8, ptr %item, i64 $frame.ARRAY_SIZES$
  %sizes.i = load ptr, ptr %sizes.q
  %sizes.p = getelementptr i8, ptr %x, i64 $frame.EXPECT_SIZES$
  %sizes.x = load ptr, ptr %sizes.p
  br label %axis
axis:
  %a = phi i64 [0, %sizes], [%a1, %axis.same]
  %axis.more = icmp ult i64 %a, %rank.x
  br i1 %axis.more, label %axis.test, label %fine
axis.test:
  %s.p = getelementptr i64, ptr %sizes.i, i64 %a
  %s = load i64, ptr %s.p
  %e.p = getelementptr i64, ptr %sizes.x, i64 %a
  %e = load i64, ptr %e.p
  %eq = icmp eq i64 %s, %e
  br i1 %eq, label %axis.same, label %wrong
axis.same:
  %a1 = add i64 %a, 1
  br label %axis
fine:
  %data.q = getelementptr i8, ptr %item, i64 $frame.ARRAY_DATA$
  %data = load ptr, ptr %data.q
  %slot = getelementptr ptr, ptr %buffers, i64 %i
  store ptr %data, ptr %slot
  %i1 = add i64 %i, 1
  br label %head
wrong:
  %mis.p = getelementptr i8, ptr %frame, i64 $frame.MISMATCH$
  store i64 %i, ptr %mis.p
  ret i32 $frame.WRONG_ARRAY$
go:
  %r = call i32 @ts_run(ptr %frame)
  ret i32 %r
}
"""
