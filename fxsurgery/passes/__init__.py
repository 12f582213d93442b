"""The registry of passes, by name."""

from collections.abc import Iterable

from fxsurgery.errors import SpecError
from fxsurgery.option_types import checked
from fxsurgery.passes.add_conv_cell import AddConvCell
from fxsurgery.passes.add_pool import AddPool
from fxsurgery.passes.deepen import Deepen
from fxsurgery.passes.elasticize import Elasticize
from fxsurgery.passes.extract_subnet import ExtractSubnet
from fxsurgery.passes.fold_bn import FoldBn
from fxsurgery.passes.insert_gates import InsertGates
from fxsurgery.passes.low_rank import LowRank
from fxsurgery.passes.narrow_branch import NarrowBranch
from fxsurgery.passes.prune_channels import PruneChannels
from fxsurgery.passes.remove_gates import RemoveGates
from fxsurgery.passes.remove_layer import RemoveLayer
from fxsurgery.passes.remove_pool import RemovePool
from fxsurgery.passes.split_edge import SplitEdge
from fxsurgery.passes.svd_shrink import SvdShrink
from fxsurgery.passes.widen import Widen
from fxsurgery.program import Program
from fxsurgery.specs import parse_spec
from fxsurgery.surgery import Rewrite

PASSES: tuple[type[Rewrite], ...] = (
    AddConvCell,
    AddPool,
    Deepen,
    Elasticize,
    ExtractSubnet,
    FoldBn,
    InsertGates,
    LowRank,
    NarrowBranch,
    PruneChannels,
    RemoveGates,
    RemoveLayer,
    RemovePool,
    SplitEdge,
    SvdShrink,
    Widen,
)
ALL: dict[str, type[Rewrite]] = {p.name: p for p in PASSES}


@checked(SpecError)
def parse(spec: str) -> Rewrite:
    """Return the pass that a text describes: `parse(str(p)) == p`. The text is not executed.

    Raises:
        SpecError: the text names no pass, or options that the pass does not have.
    """
    return parse_spec(spec, ALL, kind="pass", example="widen(add=8)")


@checked(SpecError)
def replay(log: Iterable[str], program: Program) -> Program:
    """Apply the passes of a log, oldest first, to the program that the log started from.

    Raises:
        SpecError: the log names a pass or a node that does not exist.
        VerifyError: a pass breaks its promise on this program.
    """
    for spec in log:
        program = parse(spec)(program).program
    return program


__all__ = [
    "ALL",
    "PASSES",
    "AddConvCell",
    "AddPool",
    "Deepen",
    "Elasticize",
    "ExtractSubnet",
    "FoldBn",
    "InsertGates",
    "LowRank",
    "NarrowBranch",
    "PruneChannels",
    "RemoveGates",
    "RemoveLayer",
    "RemovePool",
    "SplitEdge",
    "SvdShrink",
    "Widen",
    "parse",
    "replay",
]
