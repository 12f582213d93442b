"""Code that several search methods share."""
