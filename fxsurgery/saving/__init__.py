"""Models on disk: graphs as JSON, weights as safetensors, code to read; nothing that runs when it is read."""

from fxsurgery.saving.programs import load_program, save_program
from fxsurgery.saving.results import load_facts, load_programs, save_result
from fxsurgery.saving.standalone import write_standalone

__all__ = ["load_facts", "load_program", "load_programs", "save_program", "save_result", "write_standalone"]
