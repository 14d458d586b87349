"""The worker's half: one loop around one engine. Runs in a worker process."""
