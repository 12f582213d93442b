"""Rules for label propagation through ATen operations: which units they unite and which they freeze.

The declarations of operators refer to these functions. An operation without a rule that is tagged pointwise uses the
pointwise rule; any other freezes all of its inputs and is listed in the report.
"""
