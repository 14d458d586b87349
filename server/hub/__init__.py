"""Model files of the Hugging Face hub, named `hf:OWNER/REPO/FILE`, and downloaded once.

resolve ─▶ files (the library's cache) ─▶ download (one file) ─▶ progress
"""

from server.hub.resolve import resolve_model

__all__ = ["resolve_model"]
