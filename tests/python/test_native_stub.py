"""The stub of the native module says what the module has, and nothing else: names, parameters, kinds, defaults."""

import ast
import inspect
from pathlib import Path

import pytest

import protperf
from protperf import _native

STUB = ast.parse((Path(protperf.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
# Only in a module that was built with the cargo feature of this name.
REHEARSAL = "_rehearse_panic"
# Aliases of the stub that exist for annotations alone.
ALIASES = {"Array", "Arrays", "Parameters"}
# What Python or PyO3 adds to every class or module.
ADDED = set(dir(object)) | {"__module__", "__all__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}


def is_public(name):
    return name not in ADDED and (not name.startswith("__") or name in ("__version__", "__iter__", "__next__"))


def names_of(body):
    """Names that a module or class of the stub defines, with their nodes."""
    found = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = node
        elif isinstance(node, ast.Assign):
            found[node.targets[0].id] = node
    return found


def parameters_of_stub(node):
    """Name, kind and default of every parameter but self."""
    arguments = node.args
    positional = [(a.arg, "positional") for a in (*arguments.posonlyargs, *arguments.args)]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    named = [(a.arg, "keyword") for a in arguments.kwonlyargs]
    pairs = zip([*positional, *named], [*defaults, *arguments.kw_defaults], strict=True)
    assert arguments.vararg is None, node.name
    assert arguments.kwarg is None, node.name
    return [
        (name, kind, "required" if default is None else ast.literal_eval(default))
        for (name, kind), default in pairs
        if name != "self"
    ]


def parameters_of_native(function):
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "positional",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
    }
    return [
        (name, kinds[p.kind], "required" if p.default is inspect.Parameter.empty else p.default)
        for name, p in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    ]


STUB_NAMES = names_of(STUB.body)
FUNCTIONS = [name for name, node in STUB_NAMES.items() if isinstance(node, ast.FunctionDef)]
CLASSES = [name for name, node in STUB_NAMES.items() if isinstance(node, ast.ClassDef)]


def test_stub_and_module_have_the_same_names():
    found = {name for name in dir(_native) if is_public(name)}
    assert set(STUB_NAMES) - ALIASES - {REHEARSAL} == found - {REHEARSAL}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_parameters_that_the_stub_says(name):
    if name == REHEARSAL and not hasattr(_native, name):
        pytest.skip("the native module was built without the cargo feature rehearse-panic")
    assert parameters_of_stub(STUB_NAMES[name]) == parameters_of_native(getattr(_native, name))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_the_members_that_the_stub_says(name):
    native, members = getattr(_native, name), names_of(STUB_NAMES[name].body)
    assert set(members) - {"__init__"} == {member for member in dir(native) if is_public(member)}
    if "__init__" in members:
        assert parameters_of_stub(members["__init__"]) == parameters_of_native(native)
    for member, node in members.items():
        if isinstance(node, ast.FunctionDef) and not member.startswith("__"):
            assert parameters_of_stub(node) == parameters_of_native(getattr(native, member)), member


@pytest.mark.parametrize("function", ["favor_forward", "favor_backward", "softmax_attention"])
def test_an_option_that_does_not_exist_is_refused(function):
    needed = [p for p in parameters_of_stub(STUB_NAMES[function]) if p[2] == "required"]
    with pytest.raises(TypeError, match="casual"):
        getattr(_native, function)(*[None] * len(needed), casual=True)
