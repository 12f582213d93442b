"""Modules that this package inserts into graphs: gates and elastic layers."""
