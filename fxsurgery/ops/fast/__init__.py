"""Fast path for calls whose ATen operation and result shape are known without PyTorch's dispatcher.

Running a module on meta tensors takes up to a millisecond, mostly for Python code that computes a shape. The functions
here return what such a run would show, for common operators; all others are run.
"""
