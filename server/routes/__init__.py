"""Routes that are not generations."""
