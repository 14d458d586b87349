"""Tests. Folders mirror the packages."""
