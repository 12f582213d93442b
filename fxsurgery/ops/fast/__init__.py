"""Calls whose ATen operation and result shape are plain to see: no run through PyTorch's dispatcher is needed.

Running a module on meta tensors costs up to a millisecond, most of it Python that works out a shape. What
stands here is what such a run would show, for the operators that networks are made of; all else is run.
"""
