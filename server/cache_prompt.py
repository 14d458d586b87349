"""`--cache-prompt`: process a text once and save its state, for --restore-prompt."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigurationError
from shared.settings import Settings
from workers.prompts.restore import process_and_save


def cache_prompt(settings: Settings, path: Path | None, text_file: Path | None) -> str:
    """Save the state of the text to `path`; return what was done, in a sentence.

    Raises ConfigurationError.
    """
    if text_file is None:
        raise ConfigurationError("--cache-prompt needs --prompt-file")
    if path is None:
        raise ConfigurationError("--prompt-file needs --cache-prompt")
    text = _read_text(text_file)
    worker = settings.models[0].pool.workers[0]
    if worker.cache.restore is not None:
        raise ConfigurationError("--cache-prompt and --restore-prompt exclude each other")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"{path} cannot be written: it must be a file in a folder that exists"
        )
    tokens, seconds = process_and_save(worker, text, path)
    return f"{tokens} tokens processed in {seconds:.1f} s and saved in {path}"


def _read_text(file: Path) -> str:
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} is not text in UTF-8") from None
    if "\0" in text:
        raise ConfigurationError(f"{file} contains the character U+0000, which no prompt may")
    return text
