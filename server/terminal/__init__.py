"""What the program shows in a terminal."""
