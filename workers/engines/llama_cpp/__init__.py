"""The llama.cpp engine, on the low-level bindings of llama-cpp-python."""
