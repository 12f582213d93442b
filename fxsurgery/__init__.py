"""Model surgery on torch.fx graphs."""
