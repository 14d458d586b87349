"""The pool of worker processes, and what runs inside one."""
