"""Options: the command line, the environment and files; and the settings that follow."""
