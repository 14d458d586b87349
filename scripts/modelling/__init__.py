"""Writing and training models."""
