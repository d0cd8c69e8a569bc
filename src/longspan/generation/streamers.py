"""Objects that `generate` hands each token to, as soon as it is there; for every framework."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

from longspan.errors import InputError

#: tokens from which on the text is decoded anew with fewer of them, so that a long line costs no more per token
_MAX_TOKENS = 256
#: blocks of characters that are written without spaces between words
_UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))


class BaseStreamer:
    """What `generate` calls: `put` with the prompt (1, L), then with each new token (1,), and `end` at the end."""

    def put(self, value: Any) -> None:
        """Take ids: an array of any framework."""
        raise NotImplementedError(f"{type(self).__name__} must implement put")

    def end(self) -> None:
        """Take note that generation ended; called after an error or an interruption as well."""
        raise NotImplementedError(f"{type(self).__name__} must implement end")


class TextStreamer(BaseStreamer):
    """Prints the text of one row while it grows, word by word.

    Args:
        tokenizer: Has `decode`.
        skip_prompt: Leave the prompt out.
        **decode_kwargs: Arguments of `decode`, such as `skip_special_tokens=True`.

    Example:
        >>> from longspan import TextStreamer
        >>> class Letters:
        ...     def decode(self, ids):
        ...         return "".join(map(chr, ids))
        >>> import numpy
        >>> streamer = TextStreamer(Letters(), skip_prompt=True)
        >>> streamer.put(numpy.array([[33]]))
        >>> for character in "to be":
        ...     streamer.put(numpy.array([ord(character)]))
        to
        >>> streamer.end()
        be
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._start()

    def _start(self) -> None:
        self._tokens: list[int] = []
        self._shown = 0  # characters of the text of _tokens that were handed on
        self._awaits_prompt = True

    def put(self, value: Any) -> None:
        """Take ids, (L,) or (1, L), and hand on the words that are complete.

        Raises:
            InputError: there are several rows.
        """
        if value.ndim > 1 and value.shape[0] != 1:
            raise InputError(f"a text streamer takes one row. Received: {value.shape[0]} rows")
        is_prompt, self._awaits_prompt = self._awaits_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self._tokens.extend(value.reshape(-1).tolist())
        text = self._decode(self._tokens)
        complete = _complete(text)
        if complete > self._shown:
            self.on_finalized_text(text[self._shown : complete])
            self._shown = complete
        if text.endswith("\n"):
            self._tokens, self._shown = [], 0
        elif len(self._tokens) > _MAX_TOKENS:
            self._forget(text)

    def end(self) -> None:
        """Hand on the rest of the text, and be ready for another row."""
        rest = self._decode(self._tokens)[self._shown :] if self._tokens else ""
        self._start()
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print new text, and a line break at the end; subclasses do something else with it."""
        print(text, end="\n" if stream_end else "", flush=True)

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, **self.decode_kwargs))

    def _forget(self, text: str) -> None:
        """Keep the last half of the tokens, if their own text is the end of the whole one."""
        tokens = self._tokens[-_MAX_TOKENS // 2 :]
        kept, pending = self._decode(tokens), len(text) - self._shown
        if text.endswith(kept) and len(kept) >= pending:
            self._tokens, self._shown = tokens, len(kept) - pending


class TextIteratorStreamer(TextStreamer):
    """Text to iterate over, from another thread than the one that generates.

    Args:
        tokenizer: Has `decode`.
        skip_prompt: Leave the prompt out.
        timeout: Seconds to wait for more text before `queue.Empty` is raised; None waits for ever.
        **decode_kwargs: Arguments of `decode`.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._texts: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue new text."""
        self._texts.put(text)
        if stream_end:
            self._texts.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = self._texts.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text


class AsyncTextIteratorStreamer(TextStreamer):
    """Text to iterate over with `async for`, while another thread generates. It belongs to the running event loop.

    Args:
        tokenizer: Has `decode`.
        skip_prompt: Leave the prompt out.
        timeout: Seconds to wait for more text before `TimeoutError` is raised; None waits for ever.
        **decode_kwargs: Arguments of `decode`.

    Raises:
        InputError: there is no running event loop.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise InputError(
                "an AsyncTextIteratorStreamer must be made inside of a coroutine. Received: no running event loop"
            ) from error

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue new text, from whatever thread."""
        self._loop.call_soon_threadsafe(self._texts.put_nowait, text)
        if stream_end:
            self._loop.call_soon_threadsafe(self._texts.put_nowait, None)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        async with asyncio.timeout(self.timeout):
            text = await self._texts.get()
        if text is None:
            raise StopAsyncIteration
        return text


def _complete(text: str) -> int:
    """Number of characters that later tokens will not change: up to the last space, or all of unspaced writing."""
    if not text:
        return 0
    if text[-1].isspace() or any(first <= ord(text[-1]) <= last for first, last in _UNSPACED):
        return len(text)
    return max(text.rfind(" "), text.rfind("\n")) + 1
