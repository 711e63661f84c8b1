"""Translate the formulas into JavaScript: the page computes with the same statements as Python.

In: the source of `llavakit.planner.formulas`. Out: JavaScript text, one function per function. Guaranteed: whatever is
outside the subset is refused with its line, never guessed. The subset: functions of positional arguments; assignment to
a name; ``if``; ``for`` over ``range(...)`` or a list; ``while``; ``return``; ``append``; numbers, strings, booleans,
lists, dicts with string keys; ``+ - * /``; comparisons, ``and``, ``or``, ``not``; conditional expressions; attributes
and subscripts; calls of one another and of ``min``, ``max``, ``len``, ``range``, ``floor``, ``sqrt``, ``with_field``.

Numbers agree because both languages compute in IEEE doubles, whose square roots are exact to the last bit, and all
whole numbers here stay below 2 to the 53rd; ``//``, ``%`` and ``**``, whose meaning differs, are not in the subset.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

__all__ = ["FormulaSyntaxError", "formulas_source", "translate"]

_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.And: "&&", ast.Or: "||", ast.Not: "!", ast.USub: "-",
    ast.Eq: "===", ast.NotEq: "!==", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_BUILTINS = {
    "min": "Math.min",
    "max": "Math.max",
    "floor": "Math.floor",
    "sqrt": "Math.sqrt",
    "with_field": "with_field",
}
_PRELUDE = "function with_field(record, name, value) { return { ...record, [name]: value }; }\n"


class FormulaSyntaxError(Exception):
    """A formula uses what the translation does not know. A fault of this package, never of its user."""


def formulas_source() -> str:
    """Return the text of the modules of `llavakit.planner.formulas`, one after another."""
    from importlib import resources

    from llavakit.planner.formulas import MODULES

    folder = resources.files("llavakit.planner") / "formulas"
    return "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)


def translate(source: str) -> str:
    """Translate a module of formulas.

    Raises
    ------
    FormulaSyntaxError
        If it leaves the subset.
    """
    tree = ast.parse(source)
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    parts = [_PRELUDE]
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                parts.append(_Function(node, names).text())
            case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.Import() | ast.ImportFrom():
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                parts.append(f"const {name} = {_Function.of_constant(value)};\n")
            case ast.Expr(value=ast.Constant(value=str())):
                continue
            case _:
                raise _unknown(node)
    return "\n".join(parts)


class _Function:
    """One function at a time; remembers which names were declared."""

    def __init__(self, node: ast.FunctionDef, functions: set[str]) -> None:
        self._node = node
        self._functions = functions
        self._declared = {argument.arg for argument in node.args.args}

    @classmethod
    def of_constant(cls, value: ast.expr) -> str:
        """Translate the value of a constant of the module."""
        empty = ast.FunctionDef(name="", args=ast.arguments([], [], None, [], [], None, []), body=[], decorator_list=[])
        return cls(empty, set())._expression(value)

    def text(self) -> str:
        """Return the function."""
        arguments = self._node.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults:
            raise _unknown(self._node)
        names = ", ".join(argument.arg for argument in arguments.args)
        locals_ = sorted(self._assigned(self._node.body) - self._declared)
        declared = f"  let {', '.join(locals_)};\n" if locals_ else ""
        return f"function {self._node.name}({names}) {{\n{declared}{self._block(self._node.body, 1)}}}\n"

    def _assigned(self, body: Sequence[ast.stmt]) -> set[str]:
        found: set[str] = set()
        for statement in body:
            for node in ast.walk(statement):
                match node:
                    case ast.Assign(targets=[ast.Name(id=name)]) | ast.For(target=ast.Name(id=name)):
                        found.add(name)
                    case _:
                        continue
        return found

    def _block(self, body: Sequence[ast.stmt], depth: int) -> str:
        return "".join(self._statement(statement, depth) for statement in body)

    def _statement(self, node: ast.stmt, depth: int) -> str:
        space = "  " * depth
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                return ""
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=target, attr="append"), args=[value])):
                return f"{space}{self._expression(target)}.push({self._expression(value)});\n"
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return f"{space}{name} = {self._expression(value)};\n"
            case ast.Return(value=value) if value is not None:
                return f"{space}return {self._expression(value)};\n"
            case ast.If(test=test, body=body, orelse=other):
                text = f"{space}if ({self._expression(test)}) {{\n{self._block(body, depth + 1)}{space}}}"
                return text + (f" else {{\n{self._block(other, depth + 1)}{space}}}\n" if other else "\n")
            case ast.While(test=test, body=body, orelse=[]):
                return f"{space}while ({self._expression(test)}) {{\n{self._block(body, depth + 1)}{space}}}\n"
            case ast.For(target=ast.Name(id=name), iter=values, body=body, orelse=[]):
                return f"{space}{self._loop(name, values)} {{\n{self._block(body, depth + 1)}{space}}}\n"
            case _:
                raise _unknown(node)

    def _loop(self, name: str, values: ast.expr) -> str:
        match values:
            case ast.Call(func=ast.Name(id="range"), args=[end], keywords=[]):
                return f"for ({name} = 0; {name} < {self._expression(end)}; {name}++)"
            case ast.Call(func=ast.Name(id="range"), args=[start, end], keywords=[]):
                return f"for ({name} = {self._expression(start)}; {name} < {self._expression(end)}; {name}++)"
            case ast.Name() | ast.Attribute():
                return f"for ({name} of {self._expression(values)})"
            case _:
                raise _unknown(values)

    def _expression(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return json.dumps(value)
            case ast.Name(id=name):
                return name
            case ast.Attribute(value=value, attr=attribute):
                return f"{self._expression(value)}.{attribute}"
            case ast.Subscript(value=value, slice=index):
                return f"{self._expression(value)}[{self._expression(index)}]"
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                return f"({self._expression(left)} {_OPERATORS[type(operator)]} {self._expression(right)})"
            case ast.BoolOp(op=operator, values=values):
                return "(" + f" {_OPERATORS[type(operator)]} ".join(self._expression(value) for value in values) + ")"
            case ast.UnaryOp(op=operator, operand=operand) if type(operator) in _OPERATORS:
                return f"({_OPERATORS[type(operator)]}{self._expression(operand)})"
            case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _OPERATORS:
                return f"({self._expression(left)} {_OPERATORS[type(operator)]} {self._expression(right)})"
            case ast.IfExp(test=test, body=body, orelse=other):
                return f"({self._expression(test)} ? {self._expression(body)} : {self._expression(other)})"
            case ast.List(elts=elements):
                return "[" + ", ".join(self._expression(element) for element in elements) + "]"
            case ast.Dict(keys=keys, values=values):
                pairs = []
                for key, value in zip(keys, values, strict=True):
                    if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                        raise _unknown(node)
                    pairs.append(f"{json.dumps(key.value)}: {self._expression(value)}")
                return "{ " + ", ".join(pairs) + " }"
            case ast.Call(func=ast.Name(id="len"), args=[value], keywords=[]):
                return f"{self._expression(value)}.length"
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if (
                name in self._functions or name in _BUILTINS
            ):
                return _BUILTINS.get(name, name) + "(" + ", ".join(self._expression(value) for value in arguments) + ")"
            case _:
                raise _unknown(node)


def _unknown(node: ast.AST) -> FormulaSyntaxError:
    return FormulaSyntaxError(f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)!r} is outside the subset.")
