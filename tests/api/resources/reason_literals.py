"""Finds the reasons that HMI's own code gives: every literal that is given as a parameter called ``reason``,
and every value of a table whose name has REASON in it."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = ("crds/hmi_api", "operator/hmi_operator", "control_plane/hmi_control_plane", "runtime/hmi_runtime")
PARAMETER = "reason"
_REASON = re.compile("[A-Z][A-Za-z0-9]+")


@dataclass
class Code:
    """The names that all files define."""

    positions: dict[str, int] = field(default_factory=dict)
    """Where a function, method or class takes a reason, by its name; -1 where by keyword alone."""
    bases: dict[str, list[str]] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def position(self, name: str) -> int | None:
        """Return where a callable takes its reason; a class without a constructor is made as its base is."""
        if name in self.positions:
            return self.positions[name]
        found = (self.position(base) for base in self.bases.get(name, []))
        return next((position for position in found if position is not None), None)


def reason_literals() -> dict[str, str]:
    """Return the reasons that are written in the code, and where one of each is."""
    trees = {
        file: ast.parse(file.read_text())
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
    }
    code = Code()
    for tree in trees.values():
        _learn(tree, code)
    found: dict[str, str] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            given: Iterable[str] = ()
            if isinstance(node, ast.Call):
                given = _given(node, code)
            elif isinstance(node, ast.Assign) and any("REASON" in _last_name(name) for name in node.targets):
                given = _within(node.value)
            for reason in given:
                found.setdefault(reason, f"{file.relative_to(ROOT)}:{node.lineno}")
    return found


def _within(node: ast.expr) -> Iterator[str]:
    """Yield the values of a table; a set contains reasons of other programs."""
    for value in node.values if isinstance(node, ast.Dict) else ():
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def _learn(tree: ast.Module, code: Code) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
            _learn_parameters(node.name, node.args, code)
        elif isinstance(node, ast.ClassDef):
            code.bases[node.name] = [_last_name(base) for base in node.bases]
            _learn_class(node, code)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            for target in statement.targets:
                if isinstance(target, ast.Name) and isinstance(statement.value.value, str):
                    code.constants[target.id] = statement.value.value


def _learn_class(node: ast.ClassDef, code: Code) -> None:
    constructor = next(
        (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None
    )
    if constructor is not None:
        _learn_parameters(node.name, constructor.args, code)
        return
    fields = [
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    if PARAMETER in fields:
        code.positions[node.name] = fields.index(PARAMETER)


def _learn_parameters(name: str, arguments: ast.arguments, code: Code) -> None:
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args) if one.arg not in ("self", "cls")]
    if PARAMETER in names:
        code.positions[name] = names.index(PARAMETER)
    elif PARAMETER in [one.arg for one in arguments.kwonlyargs]:
        code.positions[name] = -1


def _given(call: ast.Call, code: Code) -> Iterator[str]:
    """Yield the literals that a call gives as its reason."""
    position = code.position(_last_name(call.func))
    if position is not None and 0 <= position < len(call.args):
        yield from _literals(call.args[position], code)
    for keyword in call.keywords:
        if keyword.arg == PARAMETER:
            yield from _literals(keyword.value, code)


def _literals(node: ast.expr, code: Code) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from _literals(node.body, code)
        yield from _literals(node.orelse, code)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _literals(value, code)
    elif isinstance(node, ast.Name) and node.id in code.constants:
        yield code.constants[node.id]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _REASON.fullmatch(node.value):
        yield node.value


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
