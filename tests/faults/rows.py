"""The injected faults and the required behaviour. FAULTS.md is generated from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A fault. The names of its tests begin with `test_fault_` and its number."""

    number: int
    fault: str
    injection: str
    expected: str


ROWS = (
    Row(
        1,
        "A worker is killed while it streams",
        "SIGKILL",
        "Its streams are cut within a second. A replacement becomes ready. The streams of other"
        " workers continue.",
    ),
    Row(
        2,
        "A worker is killed during prefill",
        "SIGKILL before the first byte of the answer",
        "That request gets a 503 with Retry-After. A request that only waited for a slot is served"
        " by another worker, without a retry by the client.",
    ),
    Row(3, "An engine reads invalid memory", "a read of address 0", "As 1. The log names SIGSEGV."),
    Row(4, "An engine aborts", "abort()", "As 1. The log names SIGABRT."),
    Row(
        5,
        "A worker runs out of memory",
        "an address space limit; a memory cgroup limit",
        "As 1. The log says that memory was the cause, or, where the kernel only killed the"
        " process, that it may have been. The front keeps running.",
    ),
    Row(
        6,
        "A worker is stopped",
        "SIGSTOP",
        "It makes no progress and is killed at its deadline; then as 1.",
    ),
    Row(
        7,
        "An engine hangs and holds the GIL",
        "a sleep in C that does not release the GIL",
        "As 6.",
    ),
    Row(
        8,
        "An engine hangs without the GIL",
        "a sleep in C that releases the GIL",
        "As 6: the front watches progress. No thread answers for a stuck engine.",
    ),
    Row(
        9,
        "Workers crash again and again",
        "an engine that ends its process after loading",
        "Each replacement waits longer (backoff). Finally the worker is given up: the log says"
        " why, `/ready` fails, requests get a 503, and the server keeps running.",
    ),
    Row(
        10,
        "The model cannot be loaded",
        "no file, a folder, an empty file, a file of another kind",
        "Exit status 3 and one sentence. Nothing is retried.",
    ),
    Row(
        11,
        "A model file is truncated or hostile",
        "files that end too early; files with overwritten counts and lengths",
        "The file is refused, or a worker crashes on it. The front keeps running, names the file,"
        " and serves other models.",
    ),
    Row(
        12,
        "A request crashes its worker",
        "a prompt that makes the engine abort",
        "Only one worker crashes: a prompt that a worker has started is never given to a second"
        " one.",
    ),
    Row(
        13,
        "All workers die at once",
        "SIGKILL to each",
        "Requests get a 503. `/ready` fails and `/health` does not. Requests succeed again when"
        " replacements are ready.",
    ),
    Row(
        14,
        "The front is killed",
        "SIGKILL, while its worker is idle, decodes, or is stuck",
        "Two seconds later no worker is left, and nothing in /dev/shm.",
    ),
    Row(
        15,
        "A worker dies within a frame",
        "half a frame in its token queue, then SIGKILL",
        "The half frame is dropped. The requests of that worker are cut.",
    ),
    Row(
        16,
        "A frame claims to be huge",
        "a header of 4 GiB, the maximum of four bytes, and endless zeros",
        "The worker is killed. The front allocates no memory for the frame.",
    ),
    Row(17, "A frame is not decodable", "random bytes of an allowed length", "As 16."),
    Row(
        18,
        "A message arrives for an unknown request",
        "tokens and an end of an unknown request; a client that disconnects from a fast stream",
        "They are dropped and counted; the debug log shows it. Other streams continue.",
    ),
    Row(
        19,
        "The front is slow",
        "SIGSTOP and, later, SIGCONT",
        "The worker blocks on its full queue and allocates no memory. No token is lost, and the"
        " worker is not treated as stuck.",
    ),
    Row(
        20,
        "A client disconnects in mid-stream",
        "a closed socket",
        "The generation ends within one step of the engine, and the slot is free.",
    ),
    Row(
        21,
        "A client disconnects while its request waits",
        "a closed socket",
        "No worker ever sees the request.",
    ),
    Row(
        22,
        "A client disconnects during prefill",
        "a closed socket, during a long prompt",
        "Prefill ends within one chunk of the prompt.",
    ),
    Row(
        23,
        "One of two neighbours is cancelled",
        "two streams in one worker; one socket is closed",
        "The other stream has the same text as alone.",
    ),
    Row(
        24,
        "A client closes its sending half",
        "SHUT_WR after the request",
        "It counts as disconnected: the connection is closed and the slot is free. A closed half"
        " does not tell whether the client still reads.",
    ),
    Row(
        25,
        "A client reads nothing",
        "a tiny SO_RCVBUF, and no read",
        "After --send-timeout it is disconnected and its slot is free. Until then the server's"
        " memory is bounded.",
    ),
    Row(
        26,
        "A client vanishes",
        "a network namespace whose address is removed: all packets to it are lost",
        "Its request is cancelled within 30 seconds, whether it streams or still waits.",
    ),
    Row(
        27,
        "A request arrives too slowly",
        "one byte at a time, in the headers and in the body; a connection that sends nothing",
        "It is closed with a 408 at a deadline: 10 seconds for the headers, --request-timeout for"
        " the whole request. Other requests are not delayed.",
    ),
    Row(
        28,
        "A body is too large",
        "2 MB, with Content-Length and in chunks",
        "A 413, without waiting for the whole body.",
    ),
    Row(
        29,
        "A flood of headers",
        "a header of 4 MB; 20,000 headers; an endless request line",
        "A 431 while they still arrive. The front uses no memory for them.",
    ),
    Row(
        30,
        "JSON that is invalid or ambiguous",
        "empty, truncated, not UTF-8, 100,000 brackets, 5,000 digits, NaN, 1e999, true instead of"
        " a number, a duplicate name, an array",
        "A 400 with a sentence, on every path.",
    ),
    Row(
        31,
        "Text that no engine can process",
        "a lone surrogate, NUL, an integer of 65 bits",
        "A 400 before any worker sees it.",
    ),
    Row(
        32,
        "A request that two parsers read differently",
        "a length together with chunks, two lengths, bare line feeds, folded headers",
        "A 400. No part of it is treated as a second request.",
    ),
    Row(
        33,
        "A foreign Host or Origin",
        "names and origins that resemble the server's own",
        "A 400. No header lets other pages read an answer, unless configured.",
    ),
    Row(
        34,
        "The queue is full",
        "more requests than slots and queue entries",
        "A 429 with Retry-After. `/health` still answers, and waiting requests are served.",
    ),
    Row(
        35,
        "SIGTERM while streams are open",
        "SIGTERM",
        "`/ready` fails and new requests are refused. Streams run to their end, or are cut at"
        " --drain-timeout. Exit status 0.",
    ),
    Row(36, "A second SIGTERM", "SIGTERM twice", "The server and its workers end at once."),
    Row(
        37,
        "No file descriptors are left",
        "RLIMIT_NOFILE of 64, and as many connections as that allows",
        "When clients disconnect, the server recovers. The log stays small.",
    ),
    Row(
        38,
        "The server runs for a long time",
        "200 workers killed and replaced; 10,000 requests",
        "Descriptors, threads, memory and /dev/shm do not grow.",
    ),
    Row(
        39,
        "A path leads outside",
        "../, %2e and other slashes in paths, ids and model names",
        "A 400 or 404. Nothing outside is touched or revealed.",
    ),
    Row(
        40,
        "The disk is full, or a saved prompt is altered or truncated",
        "a small file system; flipped or missing bytes",
        "Requests are served without the cache, the file is dropped, the log warns, and no text is"
        " wrong.",
    ),
    Row(
        41,
        "A key is wrong or missing",
        "every path, with keys that are nearly right",
        "A 401, except for /health and the files of the page, which must load before it can ask"
        " for a key. Keys are never in the log.",
    ),
    Row(
        47,
        "Standard descriptors are closed or cannot be written",
        "each of stdin, stdout and stderr closed; /dev/full; a reader that leaves, as `head` does",
        "The server serves and ends with status 0. Commands that print end with a sentence, or"
        " silently if the reader has left.",
    ),
    Row(
        51,
        "Weights differ under one name",
        "one byte of a tensor altered; the second part of a split model replaced",
        "No saved prompt of the other weights is used. The text is that of the weights.",
    ),
    Row(
        52,
        "Files that are no models are in the folder of models",
        "a projector, an adapter, an importance matrix, a vocabulary; a model without its last"
        " byte",
        "They are not listed, and the log names each once. Requests for them are a 404.",
    ),
    Row(
        53,
        "File names are odd",
        "names that are not UTF-8, with a newline or an escape character; a C locale",
        "They are served, or refused in a sentence. Lists, the log and `/metrics` stay whole.",
    ),
    Row(
        55,
        "A forged address",
        "X-Forwarded-For and X-Forwarded-Proto from any peer, also on loopback",
        "Ignored unless --trusted-proxy names that peer.",
    ),
)
