"""From chats to prompts, and from answers to function calls."""

from server.chat.format import ChatFormat, built_in_names, chat_format

__all__ = ["ChatFormat", "built_in_names", "chat_format"]
