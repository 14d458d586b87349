"""What a service manager such as systemd is told, and reloading."""
