"""The path of a generation through the front."""
