"""Turns chats into prompts, and finds function calls in answers."""

from server.chat.format import ChatFormat, built_in_names, chat_format

__all__ = ["ChatFormat", "built_in_names", "chat_format"]
