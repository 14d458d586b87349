"""HTTP without models: listener, protocol limits, access control, bodies, errors, OpenAPI."""
