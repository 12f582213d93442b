"""How labels pass through ATen operations, what these tie and what they freeze: one function for each kind.

The declarations name them. An operation without a rule that is pointwise by its own tag takes the pointwise rule; any
other freezes all of its inputs and is named in the report.
"""
