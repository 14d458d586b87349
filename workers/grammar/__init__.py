"""What constrains an answer: GBNF grammars, and JSON Schemas translated to them."""
