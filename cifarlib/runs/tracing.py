"""What a network consists of, read from the network itself: layers, shapes, parameters, paths.

The module is traced symbolically (torch.fx), so that what is reported is what is executed.
"""

import copy

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from cifarlib.runs.schema import Layer

INPUT = "input"


def trace(model: nn.Module, image: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Layers of a model in the order in which one ``image`` (channels, height, width) meets them.

    Operations that are no module (an addition, a flattening) are layers, too, named after the
    module that executes them. The model's mode and weights stay as they are.
    """
    model = copy.deepcopy(model).eval()
    tracer = _Tracer(fx.GraphModule(model, _Leaves().trace(model)))
    with torch.no_grad():
        tracer.run(torch.zeros(1, *image))
    return tuple(tracer.layers)


class _Leaves(fx.Tracer):
    """Keeps every layer whole, ours included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children())


class _Tracer(fx.Interpreter):
    """Executes a graph node by node and notes each."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.layers: list[Layer] = []

    def run_node(self, node: fx.Node) -> object:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(node)
        if node.op in ("call_module", "call_function", "call_method"):
            module = None
            if node.op == "call_module":
                module = self.module.get_submodule(str(node.target))
            self.layers.append(
                Layer(
                    name=_name(node),
                    kind=_torch_name(module) if module is not None else _kind(node),
                    inputs=tuple(_name(n) for n in node.all_input_nodes),
                    output=tuple(result.shape[1:]),
                    parameters=sum(p.numel() for p in module.parameters()) if module else 0,
                    flops=counter.get_total_flops(),
                    **_window(module),
                )
            )
        return result


def _name(node: fx.Node) -> str:
    """``stage1.block1.conv`` for a module, ``stage1.add`` for an addition inside ``stage1``."""
    if node.op == "placeholder":
        return INPUT
    if node.op == "call_module":
        return str(node.target)
    inside = list(node.meta.get("nn_module_stack", {}))
    return ".".join([*inside[-1:], _kind(node)])


def _kind(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _torch_name(module: nn.Module) -> str:
    """The name of a module's class, or of the class of torch that it is a kind of."""
    kinds = (kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
    return next(kinds).__name__


def _window(module: nn.Module | None) -> dict[str, int]:
    """Kernel size, stride and padding of a square convolution."""
    if not isinstance(module, nn.Conv2d):
        return {}
    kernel, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
    return {"kernel": kernel, "stride": stride, "padding": padding}
