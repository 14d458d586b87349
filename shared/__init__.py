"""What the front process and the workers both use. Imports nothing else of this project."""
