"""Which dim of each input is the batch: as the user states it, as the target tells, or as the model's outputs tell.

A dim of size n is the batch where the outputs *follow* it, a dim of theirs growing from k n to k (n + 1) as it grows by
one, and where samples are *apart*: a change of the first one changes no more than the k places of its own. So flat ids
with offsets have their batch in the offsets, and a recurrent net that runs over dim 0 has it in dim 1.
"""

from fxsurgery.batch_layout.statements import Statement, as_stated, by_position, statement_of
from fxsurgery.batch_layout.targets import by_target, is_ambiguous, sample_count, target_sizes
from fxsurgery.batch_layout.trial_runs import Run, by_running

__all__ = [
    "Run",
    "Statement",
    "as_stated",
    "by_position",
    "by_running",
    "by_target",
    "is_ambiguous",
    "sample_count",
    "statement_of",
    "target_sizes",
]
