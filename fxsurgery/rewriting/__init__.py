"""Edits that several passes share: they read facts of a program and change it through an `Editor`."""
