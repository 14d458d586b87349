"""Tests of the whole server over HTTP."""
