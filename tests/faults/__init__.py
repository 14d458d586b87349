"""A test for each row of FAULTS.md."""
