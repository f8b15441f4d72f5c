"""Compare what a wheel holds with what the checkout has: `wheel_content.py CHECKOUT WHEEL`."""

import sys
import zipfile
from pathlib import Path

SUFFIXES = {".py", ".pyi", ".toml", ".json", ".safetensors"}


def main(root: Path, wheel: Path) -> int:
    """Report every source file of the package that the wheel lacks; 1 where there is one, else 0."""
    expected = {"protperf/py.typed"}
    for source, target in [(root / "python/protperf", "protperf"), (root / "apps/lm", "protperf/lm")]:
        files = (path.relative_to(source) for path in source.rglob("*") if path.suffix in SUFFIXES)
        expected |= {f"{target}/{path.as_posix()}" for path in files}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = sorted(expected - names)
    if not any(name.startswith("protperf/_native.") and not name.endswith(".pyi") for name in names):
        missing.append("protperf/_native (the native module)")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        missing.append("LICENSE")
    foreign = sorted(name for name in names if not name.startswith("protperf"))
    for name in missing:
        print(f"{wheel.name} lacks {name}", file=sys.stderr)
    for name in foreign:
        print(f"{wheel.name} holds {name}, which is not the package's", file=sys.stderr)
    return 1 if missing or foreign else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
