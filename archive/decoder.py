"""Compressed pixels, decoded by a long-lived process of its own, with a memory and a time limit.

Native decoders crash, ask for gigabytes, and one of them raises a BaseException; none of that may reach a worker.
The process gets a place in a file and the header's numbers; it never parses a data set again, so what was scanned is
what is decoded. Protocol: one JSON object per line in; out, one JSON object per line, then `bytes` raw bytes.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import psutil

from archive.errors import REASONS, InputError
from archive.settings import IngestSettings

START_SECONDS = 60.0  # importing the codecs on a busy machine
SLOW_BYTES = 16 * 2**20  # every so many decoded bytes of a file allow the time limit once more
PASSES = 4  # and a file may be looked at so often without a break: compared, then read
STARVED = 10  # a process that waits for a processor gets so many times its limit
NEEDED = ("syntax", "rows", "columns", "samples", "allocated")  # of the header, by the process


@dataclass(frozen=True)
class Decoded:
    """One frame's samples in native byte order, [y, x] or [y, x, sample]; or one-dimensional, its bytes.

    precision: bits that a sample is coded with. colour: RGB or YBR_FULL where the codestream tells it, else empty.
    """

    array: np.ndarray
    precision: int
    colour: str


class PixelDecoder:
    """Decodes one file after the other in a child process, which is started on first use and again when it dies."""

    def __init__(self, settings: IngestSettings | None = None) -> None:
        self.settings = settings or IngestSettings()
        self._child: subprocess.Popen[bytes] | None = None
        self._selector: selectors.BaseSelector | None = None
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._timed, self._left = Path(), 0.0  # the last file, and the seconds that all its frames may still take
        self._seconds = self._extended = self._deadline = self._before = self._spent = 0.0

    def __enter__(self) -> PixelDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child process; a later decode starts another."""
        child, self._child = self._child, None
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        self._buffer.clear()
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def decode(self, path: Path, header: dict[str, Any], frame: int, frame_bytes: int) -> Decoded:
        """Frame `frame` (from 0) of a DICOM file whose pixels are encapsulated or deflated.

        frame_bytes: of one frame as it lies uncompressed. Raises InputError DECODE_LIMIT (memory, time, or killed for
        either), TRUNCATED, UNREADABLE, DECODE_FAILED (all else).
        """
        samples, frames = header["samples"] or 1, header["frames"] or 1
        shape = (header["rows"], header["columns"], samples)[: 3 if samples > 1 else 2]
        expected = max(header["rows"] * header["columns"] * samples * -(-header["allocated"] // 8), frame_bytes)
        if expected * 2 > self.settings.decode_bytes:
            raise InputError("DECODE_LIMIT", "the frame would not fit into the decoder's memory limit")
        question = {key: header[key] for key in NEEDED}
        question |= {"path": os.fspath(path), "offset": header["pixels"][1], "frame": frame, "frames": frames}
        question |= {"frame_bytes": frame_bytes, "inflate": header["pixels"][2] >= 0}
        with self._lock:
            if path != self._timed:
                passes = PASSES + frames * expected / SLOW_BYTES
                self._timed, self._left = path, self.settings.decode_seconds * passes
            if self._left <= 0:
                raise InputError("DECODE_LIMIT", "the frames of the file took longer than its time limit")
            try:
                reply, raw = self._ask(question, expected, min(self._left, self.settings.decode_seconds))
            except InputError:
                self.close()  # the child's state is unknown: half an answer may be in the pipe
                raise
            except (ValueError, TypeError, KeyError):
                self.close()
                raise InputError("DECODE_FAILED", "the decoder's answer cannot be understood") from None
            except BaseException:
                self.close()
                raise
            finally:
                self._left -= self._spent
        if "error" in reply:
            code = reply["error"] if reply["error"] in REASONS else "DECODE_FAILED"
            raise InputError(code, reply.get("message", ""), **reply.get("context", {}))
        array = np.frombuffer(raw, dtype=reply["dtype"]).reshape(reply["shape"])
        if array.shape not in (shape, (frame_bytes,)):
            raise InputError("DECODE_FAILED", "the decoded frame has another shape than the header says")
        return Decoded(array, int(reply["precision"]), reply["colour"])

    def _ask(self, question: dict[str, Any], expected: int, seconds: float) -> tuple[dict[str, Any], bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None
        self._allow(seconds)
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            reply = json.loads(self._line())
            size = int(reply.get("bytes", 0))
            if size > expected:
                raise InputError("DECODE_FAILED", "more bytes than the header promises")
            data = self._take(size)
            self._spent = _processor(self._child.pid)[0] - self._before
            return reply, data
        except (BrokenPipeError, EOFError):
            code = self._child.wait()
            # SIGKILL is the kernel's out-of-memory killer, SIGALRM the child's own clock; a crash is any other signal.
            raise InputError("DECODE_LIMIT" if code in (-9, -14) else "DECODE_FAILED", "the decoder died") from None

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        limits = [str(self.settings.decode_bytes), str(self.settings.decode_seconds)]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "archive.decoder", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs quote values of the header there
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the driver, which closes the child in order
        )
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._child.stdout, selectors.EVENT_READ)
        self._allow(START_SECONDS)
        self._line()

    def _allow(self, seconds: float) -> None:
        assert self._child is not None
        self._seconds, self._extended, self._spent = seconds, 0.0, 0.0
        self._before, _ = _processor(self._child.pid)
        self._deadline = time.monotonic() + seconds

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self) -> None:
        assert self._child is not None and self._child.stdout is not None and self._selector is not None
        while not self._selector.select(max(0.0, self._deadline - time.monotonic())):
            # The clock runs for a busy machine too; whoever computes, but has not got its seconds yet, gets more.
            seconds, running = _processor(self._child.pid)
            spent = seconds - self._before >= self._seconds or self._extended >= STARVED * self._seconds
            if spent or not running:
                self._spent = self._seconds
                raise InputError("DECODE_LIMIT", "decoding took longer than its time limit")
            self._extended += self._seconds / 4
            self._deadline = time.monotonic() + self._seconds / 4
        block = os.read(self._child.stdout.fileno(), 1 << 20)
        if not block:
            raise EOFError
        self._buffer += block


def _processor(pid: int) -> tuple[float, bool]:
    """Processor seconds of a process so far, and whether it runs or wants to: not so where it waits, or is gone."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.status() == psutil.STATUS_RUNNING
    except psutil.Error:
        return 0.0, False


class _Source:
    """A file that stays open between questions, with its frames' places, or as far as it was inflated."""

    def __init__(self, question: dict[str, Any], key: tuple[Any, ...]) -> None:
        from archive import fragments, part10

        self.key = key
        self.file: BinaryIO = Path(question["path"]).open("rb")  # noqa: SIM115 (closed by the next question)
        self._inflater: Any = None
        self._position = 0
        if question["inflate"]:
            part10.skip_meta(self.file)
            self._start = self.file.tell()
        else:
            size = os.fstat(self.file.fileno()).st_size
            self._frames = fragments.index_frames(self.file, question["offset"], size, question["frames"])

    def coded(self, frame: int) -> bytes:
        """One frame's codestream, or RLE segments."""
        from archive import fragments

        return fragments.read_frame_bytes(self.file, self._frames[frame])

    def inflated(self, start: int, length: int) -> np.ndarray:
        """Bytes of a deflated data set; going on from where the last call ended costs nothing but those."""
        if self._inflater is None or start < self._position:
            self.file.seek(self._start)
            self._inflater, self._position = zlib.decompressobj(-zlib.MAX_WBITS), 0
        skip, found = start - self._position, bytearray()
        while len(found) < length:
            source = self._inflater.unconsumed_tail or self.file.read(1 << 16)
            block = self._inflater.decompress(source, min(1 << 20, skip + length - len(found)))
            if not block and (not source or self._inflater.eof):
                raise InputError("TRUNCATED", found=len(found), expected=length)
            self._position += len(block)
            found += block[skip:]
            skip -= min(skip, len(block))
        return np.frombuffer(found, np.uint8)


def _answer(question: dict[str, Any], last: _Source | None) -> tuple[dict[str, Any], bytes, _Source]:
    """The reply, its bytes, and the source to keep: one file of many frames is opened and indexed once."""
    from archive import codestreams

    status = Path(question["path"]).stat()
    place = () if question["inflate"] else (question["offset"], question["frames"])
    key = (question["path"], status.st_ino, status.st_size, status.st_mtime_ns, *place)
    if last is None or last.key != key:
        if last is not None:
            last.key = ()  # stays with the caller where the next file cannot be opened
            last.file.close()
        last = _Source(question, key)
    precision, colour = question["allocated"], ""
    if question["inflate"]:
        size = question["frame_bytes"]
        array = last.inflated(question["offset"] + question["frame"] * size, size)
    else:
        array, facts = codestreams.decode_frame(last.coded(question["frame"]), question)
        precision, colour = facts.precision, facts.colour
    data = array.astype(array.dtype.newbyteorder("="), copy=False).tobytes()
    reply = {"shape": array.shape, "dtype": array.dtype.newbyteorder("=").str, "bytes": len(data)}
    return reply | {"precision": precision, "colour": colour}, data, last


def _serve(memory_bytes: int, seconds: float) -> None:
    """The child: answer questions until stdin ends."""
    import resource
    import signal

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a codec that prints must not speak into the protocol
    # Before the limit: importing needs address space of its own.
    with suppress(ImportError):
        import jpeg_ls  # noqa: F401
    import libjpeg  # noqa: F401
    import openjpeg  # noqa: F401
    import rle  # noqa: F401

    import archive.codestreams
    import archive.fragments
    import archive.part10  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patients' pixels
    answers.write(b"{}\n")
    answers.flush()
    source: _Source | None = None
    for line in sys.stdin.buffer:
        # The parent's clock is first; this one ends an orphan that hangs in a codec.
        signal.alarm(int(seconds * STARVED * 2) + 1)
        data = b""
        try:
            reply, data, source = _answer(json.loads(line), source)
        except MemoryError:
            reply, source = {"error": "DECODE_LIMIT"}, None
        except InputError as error:
            reply = {"error": error.code, "message": error.message, "context": error.context}
        except OSError:
            reply, source = {"error": "UNREADABLE"}, None
        except BaseException:  # pyo3's PanicException is no Exception
            reply = {"error": "DECODE_FAILED"}
        answers.write(json.dumps(reply).encode() + b"\n" + data)
        answers.flush()
        signal.alarm(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]))
