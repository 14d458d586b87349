"""The engines, and what chooses one. Engines never import each other; table.py lists them."""
