"""A notebook's parameters: the cell that declares them, and the values that are given for them."""

import ast
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cifarlib.checking import cut, suggest
from cifarlib.errors import ConfigError

TRAINING = "cifarlib_training"  # in an output's metadata: it tells of missing runs or training
PERCENT = ("threshold",)  # parameters of which only 0 to 100 makes sense
INJECTED = "# Parameters\n"  # how the cell begins that papermill puts after the parameters cell


def parse_parameters(source: str, name: str) -> dict[str, Any]:
    """Name → default value, from the source of a notebook's cell of parameters.

    Raises ``ConfigError``, which has the notebook's name, for anything but plain assignments.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ConfigError(
            f"{name}: the parameters cell is not valid Python, line {error.lineno}; correct it"
        ) from error
    known = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                pass
            case ast.Expr(value=ast.Constant(value=str())):  # a text that explains
                continue
            case _:
                raise ConfigError(
                    f"{name}: line {statement.lineno} of the parameters cell is no assignment; "
                    'write only lines such as scale = "smoke"'
                )
        try:
            known[target] = ast.literal_eval(value)
        except (ValueError, TypeError) as error:  # TypeError: a list as a key
            raise ConfigError(
                f"{name}: parameter {target!r} must be a plain value, such as a text, a finite "
                "number or a list"
            ) from error
    return known


def check_values(values: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """Compare values with a notebook's parameters; ``ConfigError`` for what does not fit."""
    for parameter, value in values.items():
        if parameter not in known:
            raise ConfigError(f"{name} has no parameter {parameter!r}; {suggest(parameter, known)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}: parameter {parameter!r} is {value}; give a finite number")
        default = known[parameter]
        kinds = (int, float) if type(default) is float else (type(default),)
        if default is not None and type(value) not in kinds:
            wanted = f"a {type(default).__name__}, such as {cut(repr(default))}"
            if default == "":
                wanted = "a text, such as '20m'" if parameter == "budget" else "a text"
            raise ConfigError(
                f"{name}: parameter {parameter!r} is of type {type(value).__name__}; give {wanted}"
            )
        if parameter in PERCENT and not 0 <= value <= 100:
            given = cut(str(value))
            raise ConfigError(
                f"{name}: parameter {parameter!r} is {given}; give a percentage from 0 to 100"
            )


def find_shell() -> Any:
    """IPython's shell, where this process has one."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def check_injected(sources: Sequence[str] | None = None) -> None:
    """Check what papermill injected into the notebook whose cell runs; ``ConfigError`` as above.

    papermill itself lets any name pass. ``sources`` are the cells run so far, the kernel's own
    unless given; without a kernel, nothing is checked. A list may be given as one text, as
    ``papermill -p`` does.
    """
    if sources is None:
        shell = find_shell()
        sources = shell.user_ns.get("In", ()) if shell else ()
    for declared, injected in itertools.pairwise(sources):
        if injected.startswith(INJECTED):
            known = parse_parameters(declared, "this notebook")
            given = parse_parameters(injected, "papermill's parameters")
            lists = [n for n, v in given.items() if type(v) is str and type(known.get(n)) is list]
            check_values({n: v for n, v in given.items() if n not in lists}, known, "this notebook")
