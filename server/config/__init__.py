"""Options: the command line, environment, files; what they mean together."""
