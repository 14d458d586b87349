"""HTTP: the listener, the protocol's strictness, bodies, keys, errors."""
