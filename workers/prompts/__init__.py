"""Saved prompts: KV states of processed prompts, in memory and in files."""
