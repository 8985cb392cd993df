"""What a person sees while kernels are compiled: a line that says what takes so long, and that it will not again."""

import shutil
import sys
import time


class CompileLine:
    """A line on a terminal, rewritten with each kernel, and gone when the last is done; off a terminal nothing.

    off_terminal: there, one line when the first kernel begins, for a command whose output goes to a file.
    """

    def __init__(self, off_terminal=False):
        self.off_terminal, self.began, self.told = off_terminal, 0.0, False

    def __call__(self, name, done):
        self.began = self.began or time.perf_counter()
        stream = sys.stderr
        try:
            if stream is None or stream.closed:
                return
            if stream.isatty():
                text = "" if name is None else self.text(name, done)
                stream.write(f"\r\x1b[K{text}")
            elif self.off_terminal and not self.told:
                stream.write("\rcompiling the kernels, first run only: about half a minute\n")
            self.told = True
            stream.flush()
        except (OSError, ValueError):  # whoever read it has gone: no reason for a kernel to fail
            pass

    def text(self, name, done):
        seconds = time.perf_counter() - self.began
        text = f"compiling kernels, first run only: {done} done, {seconds:.0f} s; now {name}"
        return text[: shutil.get_terminal_size().columns - 1]  # a line that wraps could not be rewritten
