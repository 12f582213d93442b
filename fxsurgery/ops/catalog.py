"""The list of all declared operators; a declaration that is not listed here has no effect."""

from fxsurgery.ops import (
    arithmetic,
    attention,
    contractions,
    creation,
    host,
    internals,
    joining,
    lookups,
    movement,
    norms,
    pointwise,
    pooling,
    queries,
    random,
    rearranging,
    recurrent,
    reductions,
)
from fxsurgery.ops.operator import Operator

OPERATORS: tuple[Operator, ...] = (
    *pointwise.DECLARED,
    *arithmetic.DECLARED,
    *contractions.DECLARED,
    *attention.DECLARED,
    *norms.DECLARED,
    *pooling.DECLARED,
    *movement.DECLARED,
    *rearranging.DECLARED,
    *joining.DECLARED,
    *reductions.DECLARED,
    *lookups.DECLARED,
    *recurrent.DECLARED,
    *random.DECLARED,
    *creation.DECLARED,
    *queries.DECLARED,
    *host.DECLARED,
    *internals.DECLARED,
)
