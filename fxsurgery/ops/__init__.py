"""Operators: one declaration for each, with all its spellings and every fact that the rest of the package asks for.

`fxsurgery.ops.registry` says which operator a node calls, `fxsurgery.ops.operator` what a declaration holds.
"""
