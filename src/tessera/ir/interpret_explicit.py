"""The meaning of the explicit level (``tile_explicit``): warp groups as coroutines, and who knows of whose accesses.

Every warp group of a role is an *agent*, and so is everything that runs beside it: its matrix unit, its store engine, and each
asynchronous copy.  An agent's *knowledge* says up to which point of every other agent it has seen what that did; barriers hand it on
from those that arrive to those that wait.  Each element of shared memory remembers who wrote it last and who has read it since.
An access that does not know of a conflicting one is a race, whatever the order in which the coroutines happened to run:
reading before the copy's barrier was waited for, refilling a stage that somebody may still read, handing threads' stores to the copy
engine without a fence.

Source: C. Flanagan, S. Freund, "FastTrack: Efficient and Precise Dynamic Race Detection" (2009).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from .core import Block, Op
from .pointwise_numpy import pointwise
from .tile import POINTWISE
from .tile_explicit import ASYNC_OPERANDS, GROUP, mma_parts
from .tile_machine import Array, Machine, Memory, Result, Run, TileError

Knowledge = dict[int, int]  # agent -> how much of its time is known
Steps = Iterator[Op]


def merge(into: Knowledge, other: Knowledge) -> None:
    for agent, time in other.items():
        if into.get(agent, 0) < time:
            into[agent] = time


@dataclass
class Event:
    """A write to shared memory: by whom, when, at which line.  ``generic``: by threads, not by an engine."""

    agent: int
    time: int
    op: Op
    generic: bool


class Track:
    """Who wrote each element of one shared memory last, and who read it since."""

    def __init__(self, size: int):
        self.event = np.zeros(size, np.int64)
        self.reads: dict[int, Array] = {}
        self.reader_op: dict[int, Op] = {}


@dataclass
class InFlight:
    """An accumulator whose products are under way until group ``time`` of the matrix unit is waited for."""

    value: Array
    time: int


@dataclass
class Phase:
    """One mbarrier.  ``completed`` counts its phases; ``known`` is what those who arrived in the running phase know."""

    arrivals: int
    left: int
    bytes: int = 0
    completed: int = 0
    known: Knowledge = field(default_factory=dict)
    last: Knowledge = field(default_factory=dict)

    def settle(self) -> None:
        if self.left == 0 and self.bytes == 0:
            self.completed += 1
            self.left, self.last, self.known = self.arrivals, self.known, {}


@dataclass
class Meeting:
    """One named barrier."""

    threads: int = 0
    round: int = 0
    known: Knowledge = field(default_factory=dict)
    last: Knowledge = field(default_factory=dict)


@dataclass
class BlockState:
    """What the agents of a block share."""

    rank: int
    cluster: list[BlockState]
    memories: dict[Any, Any] = field(default_factory=dict)  # result of alloc or mbarriers -> what it is in this block
    named: dict[int, Meeting] = field(default_factory=dict)
    met: Meeting = field(default_factory=Meeting)  # of the cluster, kept by its first block


class World:
    """Numbers for agents, and the events of one cluster."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.events: list[Event | None] = [None]

    def agent(self) -> int:
        return next(self.numbers)


class Agent(Machine):
    """One warp group (or, outside roles, the whole block) as a coroutine."""

    def __init__(self, state: Run, limit: int, world: World, block: BlockState, group: int = 0, threads: int = GROUP):
        super().__init__(state, limit)
        self.world, self.shared, self.group, self.threads = world, block, group, threads
        # what an agent writes is fenced by the one that follows it
        self.me, self.fence, self.copier, self.copies_fence, self.unit, self.engine = (world.agent() for _ in range(6))
        self.known: Knowledge = {self.me: 1}
        self.groups = {self.unit: [0, 1], self.engine: [0, 1], self.copier: [0, 1]}  # engine -> [groups committed, the next's number]
        self.children: list[Agent] = []

    # -- running -----------------------------------------------------------------------------------------------------------
    def steps(self, b: Block) -> Any:
        """A coroutine: yields the op that it waits at, returns the operands of the terminator."""
        env = self.env
        for op in b.ops:
            operands = [env[v] for v in op.operands]
            if op.name in ("yield", "return"):
                return operands
            if op.name not in ASYNC_OPERANDS and any(isinstance(x, InFlight) for x in operands):
                raise self.fail(op, "uses an accumulator before mma_wait returned it")
            if op.name in POINTWISE:
                env[op.results[0]] = pointwise(op.name, operands, op.results[0].type.dtype)
            elif op.blocks:
                out = yield from getattr(self, f"nest_{op.name}")(op, operands)
                env.update(zip(op.results, out, strict=True))
            elif op.name in _WAITS:
                yield from getattr(self, f"wait_{op.name}")(op, operands)
            elif op.name == "mma_wait":
                self.finish(self.unit, op)
                for r, x in zip(op.results, operands, strict=True):
                    done = isinstance(x, InFlight) and x.time <= self.known.get(self.unit, 0)
                    env[r] = x.value if isinstance(x, InFlight) and done else x
            else:
                out = self.rules[op.name](op, operands)
                if op.results:
                    env[op.results[0]] = out
        return []

    def nest_for(self, op: Op, operands: list[Any]) -> Any:
        lo, hi, step = (int(x) for x in operands[:3])
        if step <= 0:
            raise self.fail(op, f"the step is {step}; it must be positive")
        carried, body = operands[3:], op.blocks[0]
        for i in range(lo, hi, step):
            self.env[body.args[0]] = np.array(i, np.int64)
            self.env.update(zip(body.args[1:], carried, strict=True))
            carried = yield from self.steps(body)
        return carried

    def nest_while(self, op: Op, carried: list[Any]) -> Any:
        head, body = op.blocks
        for _ in range(self.limit):
            self.env.update(zip(head.args, carried, strict=True))
            go, *carried = yield from self.steps(head)
            if not go:
                return carried
            self.env.update(zip(body.args, carried, strict=True))
            carried = yield from self.steps(body)
        raise self.fail(op, f"does not end within {self.limit} iterations")

    def nest_if(self, op: Op, operands: list[Any]) -> Any:
        return (yield from self.steps(op.blocks[0] if operands[0] else op.blocks[1]))

    def nest_roles(self, op: Op, _: list[Any]) -> Any:
        """Run every group of every role beside the others, once the cluster has met; go on when all have ended."""
        yield from self.wait_cluster_sync(op, [])
        self.tick()
        running = []
        for role, body in enumerate(op.blocks):
            for g in range(op.attrs["groups"][role]):
                state = replace(self.s, env=dict(self.env))
                child = Agent(state, self.limit, self.world, self.shared, g, max(32, op.attrs["threads"][role]))
                merge(child.known, self.known)
                self.children.append(child)
                running.append((child, child.steps(body)))
        self.waiting: dict[Agent, Op] = {}
        while running:
            left = []
            for child, coroutine in running:
                try:
                    self.waiting[child] = next(coroutine)
                    left.append((child, coroutine))
                except StopIteration:
                    self.waiting.pop(child, None)
                    merge(self.known, child.known)
            running = left
            if running:
                yield op
        return []

    # -- knowledge ---------------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """What comes later is not known to those who learn of this moment."""
        self.known[self.me] += 1

    def told(self) -> Knowledge:
        """What this agent hands on when it arrives somewhere."""
        out = dict(self.known)
        self.tick()
        return out

    def finish(self, engine: int, op: Op) -> None:
        """Groups of an engine are over, but for the last ``pending``."""
        done = self.groups[engine][0] - op.attrs.get("pending", 0)
        if done > self.known.get(engine, 0):
            self.known[engine] = done

    def commit(self, engine: int) -> None:
        at = self.groups[engine]
        at[0], at[1] = at[1], at[1] + 1

    def race(self, op: Op, memory: Memory, what: str, other: Op | None, hints: Sequence[str]) -> TileError:
        where = f" (at {other.loc})" if other is not None and other.loc else ""
        return self.fail(op, f"race: {what} {memory.name}{where}", hints)

    def check_written(self, op: Op, memory: Memory, touched: Array, engine: bool) -> None:
        """Every element's last write must be known; an engine must also know of a fence after threads' writes."""
        for e in np.unique(memory.track.event[touched]):
            event = self.world.events[e]
            if event is None:
                continue
            if self.known.get(event.agent, 0) < event.time:
                verb = f"{op.name} touches" if engine else "accesses"
                raise self.race(op, memory, f"{verb} memory that {event.op.name} may still be writing, in", event.op, _remedies(event.op))
            if engine and event.generic and self.known.get(event.agent + 1, 0) < event.time:
                raise self.race(op, memory, f"{op.name} takes what threads wrote without fence_async, in", event.op,
                                ["tile.fence_async() after the writes, before others are told of them"])

    def check_read(self, op: Op, memory: Memory, touched: Array) -> None:
        for agent, times in memory.track.reads.items():
            latest = int(times[touched].max(initial=0))
            if latest and agent != self.me and self.known.get(agent, 0) < latest:
                raise self.race(op, memory, f"overwrites memory that {memory.track.reader_op[agent].name} may still be reading, in",
                                memory.track.reader_op[agent], _remedies(memory.track.reader_op[agent]))

    def mark_read(self, op: Op, memory: Memory, touched: Array, agent: int, time: int) -> None:
        track = memory.track
        times = track.reads.setdefault(agent, np.zeros(track.event.size, np.int64))
        times[touched] = time
        track.reader_op[agent] = op

    def mark_write(self, op: Op, memory: Memory, touched: Array, agent: int, time: int, generic: bool) -> None:
        self.world.events.append(Event(agent, time, op, generic))
        memory.track.event[touched] = len(self.world.events) - 1
        for times in memory.track.reads.values():
            times[touched] = 0
        if memory.written is not None:
            memory.written.reshape(-1)[touched] = True

    def note_read(self, op: Op, memory: Memory, touched: Array) -> None:
        if memory.track is None:
            super().note_read(op, memory, touched)
            return
        self.check_written(op, memory, touched, False)
        self.mark_read(op, memory, touched, self.me, self.known[self.me])

    def note_write(self, op: Op, memory: Memory, touched: Array, new: Array) -> None:
        if memory.track is None:
            super().note_write(op, memory, touched, new)
            return
        self.check_written(op, memory, touched, False)
        self.check_read(op, memory, touched)
        if op.attrs.get("async"):
            self.mark_write(op, memory, touched, self.copier, self.groups[self.copier][1], True)
        else:
            self.mark_write(op, memory, touched, self.me, self.known[self.me], True)

    def note_atomic(self, op: Op, memory: Memory, touched: Array) -> None:
        """Atomics meet each other without harm; a copy that is under way, or what another role reads or writes, they do not."""
        if memory.track is None:
            super().note_atomic(op, memory, touched)
            return
        events = self.world.events
        others = [e for e in np.unique(memory.track.event[touched]) if events[e] is None or events[e].op.name != "atomic"]
        self.check_written(op, memory, touched[np.isin(memory.track.event[touched], others)], False)
        self.check_read(op, memory, touched)
        self.mark_write(op, memory, touched, self.me, self.known[self.me], True)

    # -- what a block has --------------------------------------------------------------------------------------------------
    def op_alloc(self, op: Op, operands: list[Any]) -> Memory:
        made = super().op_alloc(op, operands)
        if op.results[0].type.space == "shared":
            made.track = Track(made.data.size)
        self.shared.memories[op.results[0]] = made
        return made

    def op_mbarriers(self, op: Op, _: list[Any]) -> list[Phase]:
        n = op.attrs["arrivals"]
        made = [Phase(n, n) for _ in range(op.results[0].type.shape[0])]
        self.shared.memories[op.results[0]] = made
        return made

    def op_group_id(self, _op: Op, _: list[Any]) -> Array:
        return np.array(self.group, np.int64)

    def op_cluster_rank(self, _op: Op, _: list[Any]) -> Array:
        return np.array(self.shared.rank, np.int64)

    def op_uninitialized(self, op: Op, _: list[Any]) -> Array:
        t = op.results[0].type
        return np.full(t.shape, np.nan, np.float32).astype(t.dtype.np)

    # -- barriers ----------------------------------------------------------------------------------------------------------
    def phase(self, op: Op, barriers: list[Phase], index: Any) -> Phase:
        if not 0 <= int(index) < len(barriers):
            raise self.fail(op, f"there is no barrier {int(index)}; there are {len(barriers)}")
        return barriers[int(index)]

    def arrive(self, op: Op, phase: Phase) -> None:
        if phase.left == 0:
            raise self.fail(op, f"more than {phase.arrivals} arrivals in one phase",
                            ["make the barrier for as many: tile.mbarriers(n, arrivals=…)", "wait for the phase before the next arrival"])
        phase.left -= 1
        merge(phase.known, self.told())

    def op_mbarrier_expect(self, op: Op, operands: list[Any]) -> None:
        phase = self.phase(op, operands[0], operands[1])
        phase.bytes += op.attrs["bytes"]
        self.arrive(op, phase)
        phase.settle()

    def op_mbarrier_arrive(self, op: Op, operands: list[Any]) -> None:
        if len(operands) == 3 and not operands[2]:
            return
        peers = self.shared.cluster if op.attrs.get("cluster") else [self.shared]
        for peer in peers:
            phase = self.phase(op, peer.memories[op.operands[0]], operands[1])
            self.arrive(op, phase)
            phase.settle()

    def wait_mbarrier_wait(self, op: Op, operands: list[Any]) -> Steps:
        phase = self.phase(op, operands[0], operands[1])
        while (phase.completed & 1) == int(operands[2]):
            yield op
        merge(self.known, phase.last)

    def _count(self, op: Op, meeting: Meeting) -> None:
        meeting.threads += self.threads
        merge(meeting.known, self.told())
        if meeting.threads > op.attrs["threads"]:
            raise self.fail(op, f"{meeting.threads} threads come to a barrier of {op.attrs['threads']}",
                            ["count 128 threads for each warp group that comes"])
        if meeting.threads == op.attrs["threads"]:
            meeting.round += 1
            meeting.threads, meeting.last, meeting.known = 0, meeting.known, {}

    def op_barrier_arrive(self, op: Op, operands: list[Any]) -> None:
        self._count(op, self.shared.named.setdefault(int(operands[0]), Meeting()))

    def wait_barrier_sync(self, op: Op, operands: list[Any]) -> Steps:
        meeting = self.shared.named.setdefault(int(operands[0]), Meeting())
        before = meeting.round
        self._count(op, meeting)
        while meeting.round == before:
            yield op
        merge(self.known, meeting.last)

    def wait_cluster_sync(self, op: Op, _: list[Any]) -> Steps:
        meeting = self.shared.cluster[0].met
        before = meeting.round
        meeting.threads += 1
        merge(meeting.known, self.told())
        if meeting.threads == len(self.shared.cluster):
            meeting.round += 1
            meeting.threads, meeting.last, meeting.known = 0, meeting.known, {}
        while meeting.round == before:
            yield op
        merge(self.known, meeting.last)

    def op_fence_async(self, _op: Op, _: list[Any]) -> None:
        self.known[self.fence] = self.known[self.me]
        self.known[self.copies_fence] = self.known.get(self.copier, 0)

    # -- copies ------------------------------------------------------------------------------------------------------------
    def region(self, op: Op, memory: Memory, places: Sequence[Any], box: Sequence[int]) -> Array:
        """Row-major numbers of a box's elements in shared memory."""
        at = [int(p) for p in places]
        extents = [1] * (len(at) - 2) + list(box)
        if any(a < 0 or a + n > whole for a, n, whole in zip(at, extents, memory.data.shape, strict=True)):
            raise self.fail(op, f"the box {list(box)} at {at} does not lie in {memory.name} of shape {list(memory.data.shape)}")
        numbers = np.arange(memory.data.size).reshape(memory.data.shape)
        return numbers[tuple(slice(a, a + n) for a, n in zip(at, extents, strict=True))].reshape(box)

    def window(self, memory: Memory, offsets: Sequence[Any], box: Sequence[int]) -> tuple[Array, Array]:
        """Row-major numbers of a box's elements in a buffer, and which of them exist."""
        shape, at = memory.data.shape, [int(o) for o in offsets]
        inside = np.ones(box, bool)
        flat = np.zeros(box, np.int64)
        for axis, n in enumerate(shape):
            place = np.full(box, at[axis])
            along = axis - (len(shape) - 2)
            if along >= 0:
                place = place + np.arange(box[along]).reshape((-1, 1) if along == 0 else (1, -1))
            inside &= (place >= 0) & (place < n)
            flat = flat * n + place
        return np.where(inside, flat, 0), inside

    def fetch(self, op: Op, operands: list[Any]) -> tuple[Array, int]:
        """The box that a load brings, and the position of the shared memory among the operands."""
        source = operands[0]
        rank = source.data.ndim
        flat, inside = self.window(source, operands[1:1 + rank], op.attrs["box"])
        super().note_read(op, source, flat[inside])
        values = np.zeros(inside.shape, source.data.dtype)
        values[inside] = source.data.reshape(-1)[flat[inside]]
        return values, 1 + rank

    def op_tma_load(self, op: Op, operands: list[Any]) -> None:
        box = op.attrs["box"]
        values, at = self.fetch(op, operands)
        rank = operands[at].data.ndim
        end = at + 1 + rank
        mask = op.attrs.get("multicast", 0)
        for peer in [self.shared] if not mask else [p for p in self.shared.cluster if mask >> p.rank & 1]:
            memory = peer.memories[op.operands[at]]
            touched = self.region(op, memory, operands[at + 1:end], box)
            self.check_written(op, memory, touched, True)
            self.check_read(op, memory, touched)
            memory.data.reshape(-1)[touched] = values
            copy = self.world.agent()
            self.mark_write(op, memory, touched, copy, 1, False)
            phase = self.phase(op, peer.memories[op.operands[end]], operands[end + 1])
            phase.bytes -= values.nbytes
            merge(phase.known, {copy: 1})
            phase.settle()

    def op_copy_async(self, op: Op, operands: list[Any]) -> None:
        values, at = self.fetch(op, operands)
        memory = operands[at]
        touched = self.region(op, memory, operands[at + 1:], op.attrs["box"])
        self.check_written(op, memory, touched, False)
        self.check_read(op, memory, touched)
        memory.data.reshape(-1)[touched] = values
        self.mark_write(op, memory, touched, self.copier, self.groups[self.copier][1], True)  # threads' copies are no engine's

    def op_copy_commit(self, _op: Op, _: list[Any]) -> None:
        self.commit(self.copier)

    def op_copy_wait(self, op: Op, _: list[Any]) -> None:
        self.finish(self.copier, op)

    def op_tma_store(self, op: Op, operands: list[Any]) -> None:
        memory = operands[0]
        rank, box = memory.data.ndim, op.attrs["box"]
        touched = self.region(op, memory, operands[1:1 + rank], box)
        if memory.written is not None and not memory.written.reshape(-1)[touched].all():
            raise self.fail(op, f"reads {memory.name} before it is written")
        self.check_written(op, memory, touched, True)
        self.mark_read(op, memory, touched, self.engine, self.groups[self.engine][1])
        target = operands[1 + rank]
        flat, inside = self.window(target, operands[2 + rank:], box)
        values = memory.data.reshape(-1)[touched][inside]
        super().note_write(op, target, flat[inside], values)
        target.data.reshape(-1)[flat[inside]] = values

    def op_tma_commit(self, _op: Op, _: list[Any]) -> None:
        self.commit(self.engine)

    def op_tma_wait(self, op: Op, _: list[Any]) -> None:
        self.finish(self.engine, op)

    # -- products ----------------------------------------------------------------------------------------------------------
    def matrix(self, op: Op, memory: Memory, places: Sequence[Any], rows: int, columns: int, transposed: bool) -> Array:
        box = (columns, rows) if transposed else (rows, columns)
        touched = self.region(op, memory, places, box)
        if memory.written is not None and not memory.written.reshape(-1)[touched].all():
            raise self.fail(op, f"reads {memory.name} before it is written")
        self.check_written(op, memory, touched, True)
        self.mark_read(op, memory, touched, self.unit, self.groups[self.unit][1])
        got = memory.data.reshape(-1)[touched]
        return got.T if transposed else got

    def op_mma_async(self, op: Op, operands: list[Any]) -> InFlight:
        (a, places), (b, _) = mma_parts(op)
        k, n = op.attrs["k"], op.results[0].type.shape[1]
        values = dict(zip(op.operands, operands, strict=True))
        if places is None:
            left = np.asarray(values[a])
        else:
            left = self.matrix(op, values[a], operands[3:3 + len(places)], 64, k, op.attrs.get("a_t", False))
        right = self.matrix(op, values[b], operands[-b.type.rank:], k, n, op.attrs.get("b_t", False))
        acc = operands[0].value if isinstance(operands[0], InFlight) else operands[0]
        total = left.astype(np.float64) @ right.astype(np.float64)
        if operands[1]:
            total = total + np.asarray(acc, np.float64)
        return InFlight(total.astype(np.float32), self.groups[self.unit][1])

    def op_mma_commit(self, _op: Op, _: list[Any]) -> None:
        self.commit(self.unit)


def _remedies(op: Op) -> list[str]:
    """What lets others know that an op is over."""
    if op.name in ("copy_async", "store") and (op.name == "copy_async" or op.attrs.get("async")):
        return ["wait for the copy: tile.wait_async(), tile.copy_wait() or tile.barrier()"]
    return {"tma_load": ["wait for the barrier that the copy fills: full.wait(stage, phase)"],
            "tma_store": ["tile.tma_wait() before the memory is written again"],
            "mma_async": ["tile.wgmma_wait() before the memory is released or written"]}.get(
                op.name, ["meet at a barrier in between: an mbarrier, tile.barrier_sync or tile.cluster_sync"])


_WAITS = {"mbarrier_wait", "barrier_sync", "cluster_sync"}


def run_clusters(state: Run, order: Sequence[tuple[int, tuple[int, ...]]], limit: int, seed: int | None) -> Result:
    """Run a grid cluster by cluster; the blocks of a cluster, and their warp groups, run beside each other.

    Raises:
        TileError: what the program does is forbidden, or nobody can go on.
    """
    size = int(state.fn.attrs.get("cluster", 1))
    if len(order) % size:
        at = next((op.loc for op in state.fn.walk() if op.name in ("cluster_rank", "cluster_sync")), None)
        raise TileError(f"{state.fn.name}: the grid has {len(order)} blocks, which do not form clusters of {size}", loc=at,
                        expected=f"a multiple of {size} blocks", received=f"{len(order)}",
                        hints=["let the axis that the grid walks have a multiple of the cluster's tiles", "use smaller tiles or clusters"])
    clusters = [order[i:i + size] for i in range(0, len(order), size)]
    if seed is not None:
        random.Random(seed).shuffle(clusters)
    for members in clusters:
        with np.errstate(all="ignore"):
            _run_cluster(state, members, limit, random.Random(seed) if seed is not None else None)
    first = min(state.failures, default=None)
    return Result(None if first is None else state.failures[first], len(order))


def _run_cluster(state: Run, members: Sequence[tuple[int, tuple[int, ...]]], limit: int, rng: random.Random | None) -> None:
    world = World()
    blocks: list[BlockState] = []
    for rank in range(len(members)):
        blocks.append(BlockState(rank, blocks))
    agents = [Agent(replace(state, env=dict(state.env), number=number, at=at), limit, world, block)
              for (number, at), block in zip(members, blocks, strict=True)]
    running = [(a, a.steps(state.fn.body)) for a in agents]
    waiting: dict[Agent, Op] = {}
    before: Any = None
    idle = 0
    while running:
        if rng is not None:
            rng.shuffle(running)
        left = []
        for agent, coroutine in running:
            try:
                waiting[agent] = next(coroutine)
                left.append((agent, coroutine))
            except StopIteration:
                waiting.pop(agent, None)
        running = left
        now = [(id(op), *((id(c), id(o)) for c, o in getattr(a, "waiting", {}).items())) for a, op in waiting.items()], _progress(agents)
        idle = idle + 1 if now == before else 0
        before = now
        if running and idle > 2:
            raise _deadlock(waiting)


def _progress(agents: Sequence[Agent]) -> tuple[int, ...]:
    """Changes whenever an agent arrives anywhere or learns something."""
    return tuple(sum(x.known.values()) for a in agents for x in (a, *a.children))


def _deadlock(waiting: dict[Agent, Op]) -> TileError:
    stuck: dict[str, None] = {}
    for agent, op in waiting.items():
        inner = getattr(agent, "waiting", {}) if op.name == "roles" else {agent: op}
        for who, at in inner.items():
            stuck[f"{at.name}{f' ({at.loc})' if at.loc else ''}, warp group {who.group} in block {who.s.at}"] = None
    agent = next(iter(waiting))
    first = next(iter(getattr(agent, "waiting", {}).values()), waiting[agent])
    return TileError(f"{agent.s.fn.name}: nobody can go on; waiting are: " + "; ".join(stuck), loc=first.loc,
                     hints=["every phase needs its arrivals and bytes; waiting for parity 1 passes on a fresh barrier"])


__all__ = ["run_clusters"]
