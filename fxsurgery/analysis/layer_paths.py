"""The layers of the user's model that a node of its graph stands for, by module path."""

from collections.abc import Iterator

from torch import fx

from fxsurgery.program import Program


def layers_of(node: fx.Node) -> list[str]:
    """Return the layers that a node stands for: its module, or those whose parameters its function is called with."""
    if node.op == "call_module":
        return [str(node.target)]
    return list(dict.fromkeys(_read_from(node))) or [node.name]


def layer_name(program: Program, node: str) -> str:
    """Return the path of the layer that a node stands for, by the node's name; any other name as it is."""
    found = next((one for one in program.nodes if one.name == node), None)
    return node if found is None else layers_of(found)[0]


def owner(tensor: str) -> str:
    """Return the path of the module that holds a parameter; the parameter's name if that is the model itself."""
    return tensor.rpartition(".")[0] or tensor


def _read_from(node: fx.Node) -> Iterator[str]:
    """Yield the owners of the parameters that a node reads, maybe through functions of parameters alone."""
    for read in node.all_input_nodes:
        if read.op == "get_attr":
            yield owner(str(read.target))
        elif read.op != "placeholder" and _is_constant(read):
            yield from _read_from(read)


def _is_constant(node: fx.Node) -> bool:
    """Return True if a node depends on parameters and buffers alone."""
    waiting, seen = [node], {node}
    while waiting:
        read = waiting.pop()
        inputs = read.all_input_nodes
        if read.op == "placeholder" or (read.op != "get_attr" and not inputs):
            return False
        waiting += [one for one in inputs if one not in seen]
        seen.update(inputs)
    return True
