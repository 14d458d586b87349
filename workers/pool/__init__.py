"""The front's half: starts workers, watches them, gives them requests. Runs in the front."""
