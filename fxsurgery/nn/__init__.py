"""Modules of ours that live in a graph: gates, elastic layers."""
