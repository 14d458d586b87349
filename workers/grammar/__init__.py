"""Constraints on answers: GBNF grammars, and JSON Schemas that are converted to them."""
