"""The faults that are injected, and what must happen then. FAULTS.md is made of them."""

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
        "Its streams are cut within a second, a replacement gets ready, and the streams of other"
        " workers go on.",
    ),
    Row(
        2,
        "A worker dies while it processes a prompt",
        "SIGKILL before the first byte of the answer",
        "That request gets a 503 with Retry-After. One that only waited for a slot gets another"
        " worker's, unasked.",
    ),
    Row(
        3,
        "An engine reads where it must not",
        "a read of address 0",
        "As 1; the log names SIGSEGV.",
    ),
    Row(4, "An engine gives up", "abort()", "As 1; the log names SIGABRT."),
    Row(
        5,
        "A worker has no memory left",
        "a limit of its address space; a memory cgroup's limit",
        "As 1; the log says that memory was the cause, or may have been where the kernel only"
        " killed. The front lives.",
    ),
    Row(
        6,
        "A worker is stopped",
        "SIGSTOP",
        "It makes no progress until its deadline, and is ended; then as 1.",
    ),
    Row(7, "An engine hangs and keeps the GIL", "a sleep in C that does not release it", "As 6."),
    Row(
        8,
        "An engine hangs without the GIL",
        "a sleep in C that releases it",
        "As 6: what is watched is progress, and no thread that would answer for a stuck engine.",
    ),
    Row(
        9,
        "Workers die again and again",
        "an engine that ends its process after loading",
        "Each replacement waits longer. In the end the place is given up, the log says why,"
        " readiness fails, requests get a 503, and the server stays.",
    ),
    Row(
        10,
        "The model cannot be had",
        "no file, a folder, an empty file, a file of something else",
        "Exit status 3 and one sentence. Nothing is tried again.",
    ),
    Row(
        11,
        "A model file is cut or hostile",
        "files that end too early, and ones whose counts and lengths are overwritten",
        "The file is refused, or a worker dies of it. The front lives, names the file, and serves"
        " other models.",
    ),
    Row(
        12,
        "A request kills its worker",
        "a prompt that makes the engine abort",
        "One worker dies for it: a prompt that was begun is never handed to a second one.",
    ),
    Row(
        13,
        "All workers die at once",
        "SIGKILL to each",
        "Requests get a 503, readiness fails, health does not, and all is well once replacements"
        " are ready.",
    ),
    Row(
        14,
        "The front is killed",
        "SIGKILL, to one whose worker is idle, decodes, or is stuck",
        "Two seconds later no worker is left, and nothing in /dev/shm.",
    ),
    Row(
        15,
        "A worker dies within a frame",
        "half a frame in its token queue, then SIGKILL",
        "The half is dropped, the requests of that worker are cut.",
    ),
    Row(
        16,
        "A frame claims to be enormous",
        "a header of 4 GiB, the most that four bytes can say, and zeros without end",
        "The worker is ended, and the front takes no memory for it.",
    ),
    Row(17, "A frame is rubbish", "random bytes of an allowed length", "As 16."),
    Row(
        18,
        "A message comes for a request that nobody knows",
        "tokens and an end of an unknown request; a client that leaves a fast stream",
        "They are dropped and counted, which the log says at its debug level; other streams go on.",
    ),
    Row(
        19,
        "The front is slow",
        "SIGSTOP and, later, SIGCONT",
        "The worker waits at its full queue, without taking memory; no token is lost, and it is"
        " not taken for stuck.",
    ),
    Row(
        20,
        "A client leaves in mid-stream",
        "a socket that is closed",
        "The generation ends within one step of the engine, and the slot is free.",
    ),
    Row(
        21,
        "A client leaves while its request waits",
        "a socket that is closed",
        "No worker ever sees the request.",
    ),
    Row(
        22,
        "A client leaves while its prompt is processed",
        "a socket that is closed, of a long prompt",
        "The processing ends within one chunk of the prompt.",
    ),
    Row(
        23,
        "One of two neighbours is cancelled",
        "two streams in one worker, one socket is closed",
        "The other's text is what it is alone.",
    ),
    Row(
        24,
        "A client closes its sending half",
        "SHUT_WR behind the request",
        "It counts as one that has left: the connection is closed, and no slot is kept. From a"
        " half that is closed nobody can tell whether the other one is still read.",
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
        "a network namespace whose address is taken away: all that is sent there is lost",
        "Its request is cancelled within 30 seconds, whether it streams or still waits.",
    ),
    Row(
        27,
        "A request comes too slowly",
        "a byte at a time, of the headers and of the body; a connection that sends nothing",
        "It is closed at a deadline with a 408: 10 seconds for the headers, --request-timeout for"
        " all of it. Others are not held up.",
    ),
    Row(
        28,
        "A body is too large",
        "2 MB, with Content-Length and in chunks",
        "A 413, without waiting for all of it.",
    ),
    Row(
        29,
        "A flood of headers",
        "a header of 4 MB, 20,000 headers, a request line without end",
        "A 431 while they still come; the front takes no memory for them.",
    ),
    Row(
        30,
        "JSON that is none, or is ambiguous",
        "empty, cut, not UTF-8, 100,000 brackets, 5,000 digits, NaN, 1e999, true for a number, a"
        " name twice, an array",
        "A 400 with a sentence, on every path.",
    ),
    Row(
        31,
        "Text that no engine could take",
        "a lone surrogate, NUL, an integer of 65 bits",
        "A 400 before any worker sees it.",
    ),
    Row(
        32,
        "A request that two readers understand differently",
        "a length with chunks, two lengths, bare line feeds, folded headers",
        "A 400, and nothing of it is taken for a second request.",
    ),
    Row(
        33,
        "A foreign Host or Origin",
        "names and origins that look like ours, and do not",
        "A 400. No header lets other pages read an answer, unless it is configured.",
    ),
    Row(
        34,
        "The queue is full",
        "more requests than slots and places in the queue",
        "A 429 with Retry-After; health still answers, and those that wait are served.",
    ),
    Row(
        35,
        "SIGTERM while streams are open",
        "SIGTERM",
        "Readiness fails and new requests are refused. Streams run to their end, or are cut at"
        " --drain-timeout. Exit status 0.",
    ),
    Row(36, "SIGTERM for the second time", "SIGTERM twice", "It ends at once, its workers too."),
    Row(
        37,
        "There are no file descriptors left",
        "RLIMIT_NOFILE of 64, and as many connections as it takes",
        "Once clients leave, all is well again. The log stays small.",
    ),
    Row(
        38,
        "The server runs for long",
        "200 workers killed and replaced; 10,000 requests",
        "Descriptors, threads, memory and /dev/shm are what they were.",
    ),
    Row(
        39,
        "A path leads out",
        "../, %2e, other slashes, in paths, ids and names of models",
        "A 400 or 404; nothing outside is touched or told.",
    ),
    Row(
        40,
        "The disk is full, or a saved prompt is cut or altered",
        "a small file system; bytes that are flipped or missing",
        "Requests are served without the cache, the file is dropped, the log warns, and no text"
        " is wrong.",
    ),
    Row(
        41,
        "A key is wrong or missing",
        "every path, with keys that are nearly right",
        "A 401, but for /health and the files of the page, which has to load before it can ask for"
        " a key. Keys are never in the log.",
    ),
)
