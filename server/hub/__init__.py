"""Models by name: `hf:OWNER/REPO/FILE` is a file of the Hugging Face hub, fetched once."""

from server.hub.reference import resolve_model

__all__ = ["resolve_model"]
