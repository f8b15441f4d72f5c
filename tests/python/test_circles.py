"""No two files of a crate or of the package need each other: not by imports, and not by methods of one type.

Files that need each other can only be read, tested and replaced together. Imports inside of functions count too, and so
do paths in Rust code that no `use` names; only imports for type checkers do not.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import APP, PACKAGE, ROOT, module_of, package_files

Graph = dict[str, set[str]]


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected groups of more than one file, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


# -- Python


def python_graph(sources: dict[str, str], packages: dict[str, list[str]]) -> Graph:
    """Which module imports which, by dotted name; `packages` says where each one's relative imports start."""
    graph: Graph = {name: set() for name in sources}
    for name, text in sources.items():
        tree = ast.parse(text)
        for_checkers = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if node in for_checkers:
                continue
            for target in _imported(node, packages[name]):
                known = next((t for t in (target, target.rpartition(".")[0]) if t in sources), None)
                native = target.startswith("protperf._native")  # it has no source here, and is not its package
                if known not in (None, name) and not native:
                    graph[name].add(known)
    return graph


def _imported(node: ast.AST, package: list[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) + 1 - node.level] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{source}.{alias.name}" for alias in node.names)


def _dotted(path: Path) -> str:
    inside = path.relative_to(APP) if path.is_relative_to(APP) else path.relative_to(PACKAGE)
    parts = [*module_of(path)[: 2 if path.is_relative_to(APP) else 1], *inside.with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def test_no_python_files_import_each_other() -> None:
    files = {_dotted(path): path for path in package_files()}
    sources = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    assert not circles(python_graph(sources, {name: module_of(path) for name, path in files.items()}))


def test_a_planted_python_circle_is_found() -> None:
    sources = {
        "p.a": "from p import b",
        "p.b": "def f():\n    from .c import x",
        "p.c": "import p.a",
        "p.d": "import p.a",
    }
    assert circles(python_graph(sources, {name: ["p"] for name in sources})) == [["p.a", "p.b", "p.c"]]


# -- Rust


def module_path(path: Path, source: Path) -> str:
    """`a::b` of a file below `source`; the crate's root is the empty path."""
    parts = list(path.relative_to(source).with_suffix("").parts)
    if parts[-1] in ("lib", "main", "mod"):
        parts.pop()
    return "::".join(parts)


def rust_graph(sources: dict[str, str]) -> Graph:
    """Which module names something of which other one, by module path."""
    graph: Graph = {name: set() for name in sources}
    for name, text in sources.items():
        for target in _named(name, without_tests(text)):
            parts = target.split("::")
            known = next((p for n in range(len(parts), 0, -1) if (p := "::".join(parts[:n])) in sources), None)
            if known not in (None, name):
                graph[name].add(known)
    return graph


def without_tests(text: str) -> str:
    """Code without comments and without the unit tests at its end."""
    text = re.sub(r"//[^\n]*", "", text)
    return re.split(r"#\[cfg\(test\)\]\s*mod tests\b", text)[0]


def _named(name: str, text: str) -> Iterator[str]:
    """Absolute module paths that a module's code names."""
    own = name.split("::") if name else []
    children = re.findall(r"\bmod (\w+);", text)
    for path in _paths(text):
        head, *rest = path.split("::")
        if head == "crate":
            yield "::".join(rest)
        elif head == "super":
            up = 1
            while rest and rest[0] == "super":
                up, rest = up + 1, rest[1:]
            yield "::".join([*own[: len(own) - up], *rest])
        elif head == "self":
            yield "::".join([*own, *rest])
        elif head in children:
            yield "::".join([*own, head, *rest])


def _paths(text: str) -> Iterator[str]:
    """Every path, with the braces of `use` written out."""
    for match in re.finditer(r"\buse\s+([^;]+);", re.sub(r"\bas \w+", "", text)):
        yield from _expanded("".join(match.group(1).split()))
    yield from re.findall(r"\b\w+(?:::\w+)+", text)


def _expanded(tree: str) -> Iterator[str]:
    head, brace, inner = tree.partition("{")
    if not brace:
        yield head
        return
    depth, start, inner = 0, 0, inner.removesuffix("}")
    for at, letter in enumerate(inner + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            yield from _expanded(head + inner[start:at])
            start = at + 1


def scattered_methods(sources: dict[str, str]) -> dict[str, set[str]]:
    """The modules that hold methods of a type (no trait's) that another module defines, by the type."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, text in sources.items():
        code = without_tests(text)
        for header in re.findall(r"^impl\b([^{;]*)\{", code, re.MULTILINE):
            kept = _after_generics(header.lstrip()[1:]) if header.lstrip().startswith("<") else header
            if " for " not in f" {kept} " and (match := re.match(r"\s*([\w:]+)", kept)):
                bare = match.group(1).rpartition("::")[2]
                if not re.search(rf"\b(?:struct|enum|union) {bare}\b", code):
                    found[bare].add(name)
    return found


def _after_generics(text: str) -> str:
    depth = 1
    for at, letter in enumerate(text):
        depth += {"<": 1, ">": -1}.get(letter, 0) if text[at - 1 : at + 1] != "->" else 0
        if depth == 0:
            return text[at + 1 :]
    return text


def crates() -> list[Path]:
    return sorted(path for path in (ROOT / "rust").glob("*/src") if path.is_dir())


def crate_sources(source: Path) -> dict[str, str]:
    return {module_path(path, source): path.read_text(encoding="utf-8") for path in sorted(source.rglob("*.rs"))}


@pytest.mark.parametrize("source", crates(), ids=lambda path: path.parent.name)
def test_no_rust_files_name_each_other(source: Path) -> None:
    assert not circles(rust_graph(crate_sources(source)))


@pytest.mark.parametrize("source", crates(), ids=lambda path: path.parent.name)
def test_the_methods_of_a_type_stand_in_its_file(source: Path) -> None:
    """Blocks of one `impl` in several files call each other without an import that shows it."""
    assert not scattered_methods(crate_sources(source))


def test_planted_rust_circles_are_found() -> None:
    sources = {
        "": "mod a; mod b; mod c; pub use a::A;",
        "a": "use crate::{b::{self, B}, d::D};",
        "b": "fn f() { super::c::g() }",
        "c": "mod d; fn g() -> d::E { d::h() }",
        "c::d": "use super::super::a; // and crate::b",
    }
    assert circles(rust_graph(sources)) == [["a", "b", "c", "c::d"]]
    assert not circles(rust_graph({"a": "use crate::b;", "b": "#[cfg(test)]\nmod tests { use crate::a; }"}))


def test_methods_away_from_their_type_are_found() -> None:
    sources = {
        "a": "struct Sweep<'a, E> {}\nimpl<'a, E: F<Out = X>> Sweep<'a, E> {\n}\nimpl Clone for Sweep {}",
        "b": "impl<E> super::a::Sweep<'_, E> {\n}\nimpl Display for Sweep {}",
    }
    assert scattered_methods(sources) == {"Sweep": {"b"}}
