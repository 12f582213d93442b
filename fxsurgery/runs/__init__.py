"""Run directories: what a search keeps on disk, and how a killed search resumes."""
