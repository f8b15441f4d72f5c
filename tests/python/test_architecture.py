"""The rooms and their arrows, read from the sources: who imports whom, what each may use, how long files may be."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "protperf"
APP = ROOT / "apps" / "lm"

MAX_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_STOPS = 9

# What each crate of the workspace may depend on, of this workspace and of others.
CRATES = {
    "protperf-alignment": (set(), {"protperf-core", "protperf-cpu"}),
    "protperf-core": ({"csv-core", "half", "libm", "memchr"}, set()),
    "protperf-cluster": (set(), {"protperf-core", "protperf-cpu"}),
    "protperf-io": (None, {"protperf-core"}),
    "protperf-cpu": (None, {"protperf-core"}),
    "protperf-wgpu": (None, {"protperf-core"}),
    "protperf-model": (None, {"protperf-core", "protperf-cpu", "protperf-io", "protperf-wgpu"}),
    "protperf": (
        None,
        {
            "protperf-alignment",
            "protperf-cluster",
            "protperf-core",
            "protperf-cpu",
            "protperf-io",
            "protperf-model",
            "protperf-wgpu",
        },
    ),
    "protperf-python": (None, {"protperf", "protperf-core", "protperf-io"}),
}
UNSAFE_ALLOWED = ("rust/protperf-cpu/", "rust/protperf-io/src/map.rs", "rust/protperf-python/src/")
FORBIDDEN_MODULES = {
    "dill", "ftplib", "http", "httpx", "joblib", "marshal", "pickle", "requests", "shelve", "smtplib", "socket",
    "socketserver", "ssl", "urllib", "xmlrpc",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.hub", "numpy.load"}
FORBIDDEN_STRINGS = FORBIDDEN_MODULES | FORBIDDEN_NAMES | {"hub", "allow_pickle", "trust_remote_code"}

# Files of rust/protperf-cpu/src that compute no part of docs/algorithm.md: memory, threads and choices, registers, what
# a network needs besides attention, tests.
NOT_OF_THE_ALGORITHM = {
    "aligned.rs", "backend.rs", "call.rs", "dispatch.rs", "instructions.rs", "kept_maps.rs", "lib.rs", "out_rows.rs",
    "outputs.rs", "parallel.rs", "shared_out.rs", "team.rs", "workspace.rs",
    "ops/mod.rs", "ops/pack.rs", "ops/transpose.rs",
    "simd/avx2.rs", "simd/avx512.rs", "simd/mod.rs", "simd/pair.rs", "simd/scalar.rs",
    "ops/chosen.rs", "ops/classes.rs", "ops/dropout.rs", "ops/gate.rs", "ops/heads.rs", "ops/norm.rs",
    "bf16/product/tests.rs", "workspace/poisoned.rs",
}  # fmt: skip

# Bare names that each file could take for something of its own, and the files that may define them, which all mean the
# same: a line of a text, the side of a kernel, a row of a table (that of the maps included), a block of the network.
ONE_MEANING = {
    "Line": ("rust/protperf-core/src/fasta/lines.rs",),
    "Lines": ("rust/protperf-core/src/fasta/lines.rs",),
    "Part": (),
    "Parts": (),
    "Side": ("rust/protperf-core/src/attention/features.rs",),
    "Row": (
        "rust/protperf-core/src/feature_map/", "apps/lm/scan/scan.py", "apps/lm/tables/table.py",
        "apps/lm/variants/rows.py",
    ),
    "Rows": ("apps/lm/variants/sites.py",),
    "Block": (
        "rust/protperf-model/src/block/", "rust/protperf-model/src/gpu/", "apps/lm/model/network.py",
        "apps/lm/export/modeling_protperf.py",
    ),
    "Blocks": (),
}  # fmt: skip


def room(path: Path) -> str:
    """The dotted room of a source file: protperf.lm, protperf.torch or protperf."""
    if path.is_relative_to(APP):
        return "protperf.lm"
    return "protperf.torch" if path.is_relative_to(PACKAGE / "torch") else "protperf"


def package_files() -> list[Path]:
    """Every Python file that ships: the package without the link, and the app once."""
    own = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.is_relative_to(PACKAGE / "lm")]
    return own + sorted(APP.rglob("*.py"))


def module_of(path: Path) -> list[str]:
    """The dotted name of a file's package, for relative imports."""
    inside = path.relative_to(APP) if path.is_relative_to(APP) else path.relative_to(PACKAGE)
    return ["protperf", *(["lm"] if path.is_relative_to(APP) else []), *inside.parts[:-1]]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path)
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def under(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def tracked() -> list[Path]:
    """Files under version control, else every file outside the build outputs."""
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        skipped = {".git", ".venv", "target", "runs", "dist"}
        return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file() and not path.is_symlink()]


def breaks_an_arrow(here: str, name: str) -> bool:
    """Whether a file of a room may not import that name."""
    if here == "protperf.lm":
        return under(name, "protperf") and any(re.match(r"_[a-z]", part) for part in name.split(".")[:2])
    return under(name, "protperf.lm") or (here == "protperf" and under(name, "protperf.torch"))


def test_python_imports_follow_the_arrows() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name} from {room(path)}"
        for path in package_files()
        for line, name in imports(path)
        if breaks_an_arrow(room(path), name)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", ["protperf", "protperf.lm", "protperf.io"])
def test_importing_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_cargo_dependencies_follow_the_arrows() -> None:
    seen = {}
    for manifest in [ROOT / "Cargo.toml", *sorted((ROOT / "rust").glob("*/Cargo.toml"))]:
        table = tomllib.loads(manifest.read_text(encoding="utf-8"))
        seen[table["package"]["name"]] = set(table.get("dependencies", {}))
    assert set(seen) == set(CRATES), "a crate without a row in CRATES, or a row without a crate"
    for name, (others, ours) in CRATES.items():
        own = {dependency for dependency in seen[name] if dependency.startswith("protperf")}
        assert own <= ours, f"{name} depends on {sorted(own - ours)}"
        assert others is None or seen[name] - own <= others, f"{name} depends on {sorted(seen[name] - own - others)}"


def test_unsafe_stays_in_its_rooms() -> None:
    faults = []
    for path in sorted((ROOT / "rust").rglob("*.rs")):
        name = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("//")[0]
            if re.search(r"\bunsafe\b(?!_)", code) and not name.startswith(UNSAFE_ALLOWED):
                faults.append(f"{name}:{number}")
    assert not faults, "\n".join(faults)


def definitions(name: str, source: str) -> Iterator[str]:
    """Names of the types of a Rust source, or of the classes and the types by assignment of a Python source."""
    python = r"^\s*class (\w+)|^(\w+)(?:: [\w.]+)? = |^type (\w+)"
    rust = r"^\s*(?:pub(?:\([\w: ]+\))? )?(?:struct|enum|union|trait|type) (\w+)"
    for match in re.finditer(rust if name.endswith(".rs") else python, source, re.MULTILINE):
        yield next(filter(None, match.groups()))


def test_a_bare_name_has_one_meaning() -> None:
    sources = [*package_files(), ROOT / "rust" / "lib.rs", *sorted(ROOT.glob("rust/*/src/**/*.rs"))]
    named = {path.relative_to(ROOT).as_posix(): path for path in sources}
    faults = [
        f"{name} defines {word}; say more exactly what it is. Files that may: {', '.join(ONE_MEANING[word]) or 'none'}"
        for name, path in named.items()
        for word in definitions(name, path.read_text(encoding="utf-8"))
        if word in ONE_MEANING and not name.startswith(ONE_MEANING[word])
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.rs", "pub(super) struct Row<'a> {"),
        ("a.rs", "mod tests {\n    enum Row {"),
        ("a.rs", "pub type Row = u32;"),
        ("a.py", "class Row(Generic[T]):"),
        ("a.py", "Row = tuple[int, int]"),
        ("a.py", 'Row: TypeAlias = "tuple[int, int]"'),
    ],
)
def test_a_definition_is_found_in_each_form(name: str, source: str) -> None:
    assert list(definitions(name, source)) == ["Row"]


def test_memory_of_an_exact_length_is_asked_for_in_one_place() -> None:
    sources = [
        path for path in (ROOT / "rust").rglob("*.rs") if "try_reserve_exact" in path.read_text(encoding="utf-8")
    ]
    assert [path.relative_to(ROOT).as_posix() for path in sources] == ["rust/protperf-core/src/memory.rs"]


def test_core_and_facade_forbid_unsafe() -> None:
    for name in ["rust/lib.rs", "rust/protperf-core/src/lib.rs", "rust/protperf-wgpu/src/lib.rs"]:
        assert "#![forbid(unsafe_code)]" in (ROOT / name).read_text(encoding="utf-8"), name


def offences(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of all in a source that could run code out of a file or open a connection, under any alias."""
    tree = ast.parse(source)
    called: dict[str, str] = {}  # what a name of the file stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            called |= {
                alias.asname or alias.name.split(".")[0]: (alias.asname and alias.name) or alias.name.split(".")[0]
                for alias in node.names
            }
            yield from (
                (node.lineno, f"import {x.name}") for x in node.names if x.name.split(".")[0] in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            called |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, f"import {node.module}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            first, *rest = ast.unparse(node).split(".")
            name = ".".join([called.get(first, first), *rest]).removeprefix("builtins.")
            if name in FORBIDDEN_NAMES:
                yield node.lineno, name
        elif isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in FORBIDDEN_STRINGS:
            yield node.lineno, repr(node.value)


def test_the_package_neither_unpickles_nor_opens_a_connection() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in package_files()
        for line, what in offences(path.read_text(encoding="utf-8"))
        # A command of that name, which nothing looks up among Python's functions.
        if (path.name, what) != ("commands.py", "'eval'")
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import urllib.request as u",
        "from http import client",
        "import torch\ntorch.load(path)",
        "import torch as t\nread = t.load",
        "from torch import load as read\nread(path)",
        "import numpy as np\nnp.load(path, mmap_mode='r')",
        "from builtins import eval as compute\ncompute(text)",
        "exec(text)",
        "list(map(eval, lines))",
        "__import__(name)",
        "from importlib import import_module\nimport_module('pickle')",
        "getattr(torch, 'hub')",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "f(**{'allow_pickle': True})",
        "def f():\n    from socket import socket",
    ],
)
def test_a_planted_offence_is_found_under_any_name(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source", ["import re\nre.compile(x)", "network.eval()", "import json\njson.load(f)", "'a pickle'"]
)
def test_what_only_looks_like_an_offence_is_allowed(source: str) -> None:
    assert not list(offences(source))


def test_no_source_file_is_longer_than_500_lines() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked()
        if path.suffix in {".py", ".pyi", ".rs", ".wgsl"}
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_no_python_function_is_longer_than_60_lines() -> None:
    faults = []
    for path in package_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                if lines > MAX_FUNCTION_LINES:
                    faults.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert not faults, "\n".join(faults)


def test_no_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w.~])/(?:home|root|work|Users)/\w")
    faults = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" in content or path.suffix in {".gz", ".xz", ".zst", ".bz2"}:
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if pattern.search(line):
                faults.append(f"{path.relative_to(ROOT)}:{number}")
    assert not faults, "\n".join(faults)


def test_each_kernel_file_opens_with_its_section_of_the_algorithm() -> None:
    page = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\.", page, re.MULTILINE))
    kernels = ROOT / "rust" / "protperf-cpu" / "src"
    files = {path.relative_to(kernels).as_posix(): path for path in sorted(kernels.rglob("*.rs"))}
    assert files.keys() >= NOT_OF_THE_ALGORITHM
    for name in files.keys() - NOT_OF_THE_ALGORITHM:
        opening = " ".join(re.findall(r"^//! ?(.*)$", files[name].read_text(encoding="utf-8"), re.MULTILINE))
        named = re.findall(r"`docs/algorithm\.md`, sections? (\d+)(?: (?:and|to) (\d+))?", opening)
        assert named, f"{name} does not open with its section of docs/algorithm.md"
        assert {number for pair in named for number in pair if number} <= sections, name


def test_the_architecture_page_is_short_and_names_what_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 150
    named = re.findall(r"`((?:rust|python|apps|tests|benches|examples)/[\w./-]*)`", page)
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]


def test_a_call_makes_nine_stops_and_each_helper_is_called_from_its_stop() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.split("\n## One call, file by file\n")[1].split("\nThe way back")[0]
    stops = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(stops) <= MAX_STOPS
    for text in stops:
        stop, _, helpers = re.sub(r"\s+", " ", text).partition("Helper")
        (first, *_), named = (re.findall(r"`((?:rust|python)/[\w./-]+\.(?:rs|py))`", part) for part in (stop, helpers))
        callers = (ROOT / first).read_text(encoding="utf-8")
        for helper in named:
            assert re.search(rf"\b{Path(helper).stem}::|\.{Path(helper).stem}\b", callers), f"{first} has no {helper}"
            callers += (ROOT / helper).read_text(encoding="utf-8")
