"""The engines, one a file. They never import each other; workers.engines.base has their table."""
