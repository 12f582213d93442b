"""Operators: one declaration each, with all spellings and every fact that the rest of the package needs.

`fxsurgery.ops.registry` finds the operator that a node calls; `fxsurgery.ops.operator` defines a declaration.
"""
