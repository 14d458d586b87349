"""The front process: HTTP in, HTTP out. It never loads a model."""
