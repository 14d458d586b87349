"""Reads model files without loading the models."""
