"""The server as a service: notifications to systemd, and reloading."""
