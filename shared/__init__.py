"""What the front process and the workers both speak. Imports nothing of ours."""
