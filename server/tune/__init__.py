"""`tokenflume tune`: finds the fastest options on this machine, by measuring real workers.

command ─▶ search (what to try, what to keep) ─▶ measure (a pool, its figures) ─▶ report
"""
