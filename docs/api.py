"""Writes docs/api.md, the reference of the Python functions and modules, from their docstrings.

python docs/api.py
"""

import importlib
import inspect
import re
from pathlib import Path

PAGE = Path(__file__).parent / "api.md"
MODULES = (
    "protperf",
    "protperf.errors",
    "protperf.gpu",
    "protperf.io",
    "protperf.torch",
    "protperf.torch.nn",
    "protperf.torch.fitting",
    "protperf.torch.regime",
    "protperf.torch.seeing",
    "protperf.lm",
)
HEAD = """# Reference

Written by `python docs/api.py` from the docstrings, which `help(protperf.favor_attention)` shows too. `protperf.lm` is
the app; for its commands see `protperf COMMAND --help`.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *(part for name in MODULES for part in described(name))])


def described(module: str) -> list[str]:
    """The sections of one module, its names in alphabetical order."""
    found = importlib.import_module(module)
    parts = [f"## {module}\n", f"{indented(inspect.getdoc(found) or '')}\n"]
    for name in sorted(found.__all__, key=str.lower):
        thing = getattr(found, name)
        if inspect.ismodule(thing) or not (inspect.isclass(thing) or callable(thing)):
            continue
        parts += [
            f"### {name}\n",
            f"{indented(signature(name, thing))}\n",
            f"{indented(inspect.getdoc(thing) or '')}\n",
        ]
        if inspect.isclass(thing):
            parts += methods(thing)
    return parts


def methods(thing: type) -> list[str]:
    """The public methods that a class defines itself."""
    parts = []
    for name, method in vars(thing).items():
        plain = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isfunction(plain) and plain.__doc__:
            parts += [f"{indented(signature('.' + name, plain))}\n", f"{indented(inspect.getdoc(plain) or '', 8)}\n"]
    return parts


def signature(name: str, thing: object) -> str:
    """Name and arguments, one line or one for each argument; of an exception what it may be caught as."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"
    try:
        given = inspect.signature(thing)  # type: ignore[arg-type]
    except ValueError:
        return name
    text = f"{name}{given}"
    if len(text) > 110:
        lines, is_keyword = [], False
        for argument in given.parameters.values():
            if argument.kind is argument.KEYWORD_ONLY and not is_keyword:
                lines, is_keyword = [*lines, "    *,"], True
            lines.append(f"    {argument},")
        result = "" if given.return_annotation is given.empty else f" -> {given.return_annotation}"
        text = "\n".join([f"{name}(", *lines, f"){result}"])
    # What a default does, its documentation says; where it lies in memory is nothing to read.
    text = re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", text)
    # Annotations are texts, which are shown without their quotes.
    text = re.sub(r"ForwardRef\(('[^']*')[^)]*\)", r"\1", text)
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def indented(text: str, by: int = 4) -> str:
    """The lines of a text as a block of Markdown that is shown as it stands."""
    return "\n".join(" " * by + line if line else "" for line in text.splitlines())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
