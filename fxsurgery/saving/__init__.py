"""Saving of models: graphs as JSON, weights as safetensors, readable code. Reading them executes nothing."""

from fxsurgery.saving.programs import load_program, save_program
from fxsurgery.saving.results import open_result, save_result
from fxsurgery.saving.standalone import write_standalone

__all__ = ["load_program", "open_result", "save_program", "save_result", "write_standalone"]
