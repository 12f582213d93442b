"""Run directories: what a search keeps on disk, and how a killed one goes on."""
