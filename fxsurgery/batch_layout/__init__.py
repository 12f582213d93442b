"""Batch dims of the inputs: declared by the user, inferred from the target, or inferred from the model's outputs.

A dim of size n is the batch if the outputs *follow* it, i.e. one of their dims grows from k n to k (n + 1) when it
grows by one, and if samples are *apart*, i.e. a change of the first one changes only its own k entries. So flat ids
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
