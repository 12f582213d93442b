"""Edits shared by several passes. They read facts about a program and change it through an `Editor`."""
