"""The engines, one a file. They never import each other; workers.engine has their table."""
