"""`tokenflume tune`: what is fastest here, found by measuring the real workers.

command ─▶ search (what to try, what to keep) ─▶ measure (a pool, its figures) ─▶ report
"""
