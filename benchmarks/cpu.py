"""Tessera beside its peers on this CPU: ``python benchmarks/cpu.py [--cases a,b] [--peers numpy,torch] [--rounds 5]``.

Each peer runs in a process of its own, pinned to the same processors; rounds go round-robin over the peers, so that a
noisy moment hits all alike.  Every peer but Tessera is run twice: as it comes, and *tuned*, with glibc told to keep big
blocks (no page faults on fresh results).  A figure is the median over rounds of each round's median.  The peers' results
must agree in dtype and in the mean of their magnitudes, and all must use the same number of threads, else the row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cases import CASES, Case

HERE = Path(__file__).resolve().parent
PEERS = ("numpy", "torch", "inductor", "jax", "onnxruntime")
TUNED = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"}


class Child:
    """A peer in its own pinned process."""

    def __init__(self, peer: str, tuned: bool, cpus: list[int], script: str = "peers.py"):
        self.peer, self.tuned = peer, tuned
        self.name = peer + (" tuned" if tuned else "")
        threads = str(len(cpus))
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
               "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", **(TUNED if tuned else {})}
        self.process = subprocess.Popen([sys.executable, str(HERE / script), peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=env,
                                        preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        self.hello = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the process ended"}
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(name: str, children: list[Child], rounds: int, seconds: float) -> dict[str, Any]:
    """One row: each child's state after preparing, and its times over the rounds."""
    states = {}
    for child in children:
        states[child.name] = child.ask(prepare=name)
    able = [c for c in children if "mean" in states[c.name]]
    times: dict[str, list[float]] = {c.name: [] for c in able}
    for _ in range(rounds):
        for child in able:
            count = max(3, min(50, int(seconds / max(states[child.name]["once_s"], 1e-4))))
            got = child.ask(run=count)
            times[child.name].append(statistics.median(got["times"]) if "times" in got else math.nan)
    for child in children:
        child.ask(drop=True)
    return {"peers": {n: {**s, **({"median_s": statistics.median(times[n]), "best_s": min(times[n]), "rounds_s": times[n]}
                                  if n in times else {})} for n, s in states.items()}}


def compare(case: Case, row: dict[str, Any], threads: int) -> None:
    """Add the ratios to the best peers, and what the peers disagree about, to a row."""
    peers, problems = row["peers"], []
    done = {n: p for n, p in peers.items() if "median_s" in p and not math.isnan(p["median_s"])}
    others = {n: p["median_s"] for n, p in done.items() if n != "tessera"}
    means = sorted(p["mean"] for p in done.values())
    middle = means[len(means) // 2] if means else 0.0
    for n, p in peers.items():
        if "error" in p:
            problems.append(f"{n}: {p['error']}")
        elif n in done:
            if p["dtype"] != case.dtype:
                problems.append(f"{n} computes in {p['dtype']}, not {case.dtype}")
            if p["threads"] != threads:
                problems.append(f"{n} uses {p['threads']} threads, not {threads}")
            if abs(p["mean"] - middle) > (1e-2 if case.dtype == "bfloat16" else 1e-3) * abs(middle):
                problems.append(f"{n} gives another mean: {p['mean']:.6g}, not {middle:.6g}")
    row["problems"] = problems
    tuned = {n: t for n, t in others.items() if n.endswith(" tuned")}
    for key, group in (("default", {n: t for n, t in others.items() if n not in tuned}), ("tuned", tuned)):
        if group:
            best = min(group, key=lambda n: group[n])
            row[f"best_{key}"] = {"peer": best, "median_s": group[best]}
            if "tessera" in done:
                row[f"ratio_{key}"] = group[best] / done["tessera"]["median_s"]


def summarise(rows: dict[str, Any], cases: dict[str, Case]) -> dict[str, Any]:
    """Which judged cases miss their target against the tuned peers, and the geometric mean over the group."""
    ratios = {n: r["ratio_tuned"] for n, r in rows.items() if "ratio_tuned" in r}
    group = [r for n, r in ratios.items() if cases[n].group]
    missed = {n: r for n, r in ratios.items() if cases[n].judged and r < cases[n].target}
    mean = math.exp(sum(map(math.log, group)) / len(group)) if group else None
    return {"geometric_mean_tuned": mean, "missed": missed, "unmeasured": [n for n in rows if n not in ratios]}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False).stdout.strip()
    except OSError:
        return ""


def machine(cpus: list[int]) -> dict[str, Any]:
    """What was measured on: processor, kernel, commit, versions are in the peers' greetings."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    return {"cpu": model, "processors": cpus, "kernel": platform.release(), "python": platform.python_version(),
            "load": os.getloadavg(), "commit": _output("git", "rev-parse", "HEAD"),
            "changed": bool(_output("git", "status", "--porcelain", "--untracked-files=no", "--", "../src")),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def show(name: str, row: dict[str, Any]) -> str:
    def ms(p: dict[str, Any]) -> str:
        return f"{p['median_s'] * 1e3:.4g}" if "median_s" in p else "-"
    cells = [f"{n} {ms(p)}" for n, p in row["peers"].items() if "median_s" in p]
    ratios = [f"{k}: x{row[f'ratio_{k}']:.2f} of {row[f'best_{k}']['peer']}" for k in ("default", "tuned") if f"ratio_{k}" in row]
    notes = [f"  ! {p}" for p in row["problems"]]
    return "\n".join([f"{name:18s} ms: " + ", ".join(cells), " " * 19 + "; ".join(ratios), *notes])


def options(about: str, cases: dict[str, Case], peers: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--cases", default=",".join(cases), help="comma-separated (default: all)")
    parser.add_argument("--peers", default=",".join(peers), help="comma-separated (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each peer in each round")
    parser.add_argument("--no-default", action="store_true", help="leave the untuned peers out")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: results/NAME-DATE.json)")
    return parser


def compete(parser: argparse.ArgumentParser, name: str, cases: dict[str, Case], script: str) -> tuple[dict[str, Any], Path]:
    """Run the cases that the command line asks for; the report, and where it was written."""
    args = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[:args.threads]
    if len(cpus) < args.threads:
        parser.error(f"{args.threads} threads need as many processors; this process may use {len(cpus)}")
    wanted = [n for n in args.cases.split(",") if n]
    if unknown := [n for n in wanted if n not in cases]:
        parser.error(f"unknown cases: {', '.join(unknown)}")
    children = [Child("tessera", False, cpus, script)]
    for peer in filter(None, args.peers.split(",")):
        children += [Child(peer, tuned, cpus, script) for tuned in ((True,) if args.no_default else (False, True))]
    report: dict[str, Any] = {"machine": machine(cpus), "threads": args.threads,
                              "versions": {c.name: c.hello.get("version", c.hello) for c in children}, "cases": {}}
    out = args.out or HERE / "results" / f"{name}-{time.strftime('%Y%m%d-%H%M')}.json"
    out.parent.mkdir(exist_ok=True)
    try:
        for case in wanted:
            row = measure(case, children, args.rounds, args.seconds)
            compare(cases[case], row, args.threads)
            report["cases"][case] = {"what": cases[case].what, "flops": cases[case].flops, **row}
            print(show(case, row), flush=True)
            report["summary"] = summarise(report["cases"], cases)
            out.write_text(json.dumps(report, indent=1) + "\n")
    finally:
        for child in children:
            child.close()
    print(json.dumps(report["summary"], indent=1))
    print(f"written to {out}")
    return report, out


def main() -> int:
    compete(options(__doc__.splitlines()[0], CASES, PEERS), "cpu", CASES, "peers.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
