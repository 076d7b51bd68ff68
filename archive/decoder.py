"""Compressed pixels, decoded by a long-lived process of its own, with a memory and a time limit.

Native decoders crash, ask for gigabytes, and one of them raises a BaseException; none of that may reach a worker.
Protocol: one JSON object per line in; out, one JSON object per line, followed by `bytes` raw bytes where there is one.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from archive.errors import InputError
from archive.settings import IngestSettings

START_SECONDS = 60.0  # importing the codecs on a busy machine


class PixelDecoder:
    """Decodes one file after the other in a child process, which is started on first use and again when it dies."""

    def __init__(self, settings: IngestSettings | None = None) -> None:
        self.settings = settings or IngestSettings()
        self._child: subprocess.Popen[bytes] | None = None
        self._selector: selectors.BaseSelector | None = None
        self._buffer = bytearray()
        self._lock = threading.Lock()

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

    def decode(self, path: Path, rows: int, columns: int, samples: int, allocated: int) -> np.ndarray:
        """The first frame of a DICOM file: native byte order, [rows, columns] or [rows, columns, samples].

        Raises InputError DECODE_LIMIT (memory, time, or killed for either), DECODE_FAILED (all else).
        """
        expected = rows * columns * samples * allocated // 8
        if expected * 2 > self.settings.decode_bytes:
            raise InputError("DECODE_LIMIT", "the frame would not fit into the decoder's memory limit")
        with self._lock:
            try:
                reply, raw = self._ask({"path": os.fspath(path)}, expected)
            except BaseException:
                self.close()  # the child's state is unknown: half an answer may be in the pipe
                raise
        if "error" in reply:
            raise InputError(reply["error"])
        array = np.frombuffer(raw, dtype=reply["dtype"]).reshape(reply["shape"])
        shape = (rows, columns) if samples == 1 else (rows, columns, samples)
        if array.shape != shape:
            raise InputError("DECODE_FAILED", "the decoded frame has another shape than the header says")
        return array

    def _ask(self, question: dict[str, Any], expected: int) -> tuple[dict[str, Any], bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None
        deadline = time.monotonic() + self.settings.decode_seconds
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            reply = json.loads(self._line(deadline))
            size = int(reply.get("bytes", 0))
            # numpy scalars wider than the header's are possible (pydicom promotes some), more than that is a lie
            if size > 8 * expected:
                raise InputError("DECODE_FAILED", "more bytes than the header promises")
            return reply, self._take(size, deadline)
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
        self._line(time.monotonic() + START_SECONDS)

    def _line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._fill(deadline)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self, deadline: float) -> None:
        assert self._child is not None and self._child.stdout is not None and self._selector is not None
        left = deadline - time.monotonic()
        if left <= 0 or not self._selector.select(left):
            raise InputError("DECODE_LIMIT", "decoding took longer than its time limit")
        block = os.read(self._child.stdout.fileno(), 1 << 20)
        if not block:
            raise EOFError
        self._buffer += block


def _decode(path: str) -> np.ndarray:
    import pydicom
    from pydicom.pixels import pixel_array

    import archive.part10  # noqa: F401  (silences pydicom, as everywhere)

    # Bits are masked and sign-extended by the reader, colour is left as it is coded.
    array = pixel_array(pydicom.dcmread(path), index=0, raw=True)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def _serve(memory_bytes: int, seconds: float) -> None:
    """The child: answer questions until stdin ends."""
    import resource
    import signal

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a codec that prints must not speak into the protocol
    import pydicom.pixels  # noqa: F401  (before the limit: importing needs address space of its own)

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patients' pixels
    answers.write(b"{}\n")
    answers.flush()
    for line in sys.stdin.buffer:
        # The parent's clock is first; this one ends an orphan that hangs in a codec.
        signal.alarm(int(seconds * 2) + 1)
        data = b""
        try:
            array = _decode(json.loads(line)["path"])
            data = array.tobytes()
            reply: dict[str, Any] = {"shape": array.shape, "dtype": array.dtype.str, "bytes": len(data)}
        except MemoryError:
            reply, data = {"error": "DECODE_LIMIT"}, b""
        except BaseException:  # pyo3's PanicException is no Exception
            reply, data = {"error": "DECODE_FAILED"}, b""
        answers.write(json.dumps(reply).encode() + b"\n" + data)
        answers.flush()
        signal.alarm(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]))
