"""Runs programs within a time, and reads what they print."""

import json
import os
import re
import signal
import subprocess
import tempfile

# Characters of what a program has printed that a report keeps.
KEPT = 20000
# Seconds until a program that was killed is given up: it waits in the driver, and nothing ends it.
UNTIL_GIVEN_UP = 5


class Failed(Exception):
    """What went wrong, in one line, and what was found nevertheless."""

    def __init__(self, line, **found):
        super().__init__(" ".join(line.split()))
        self.found = found


class Missing(Failed):
    """What a step needs and this machine has not got."""


class Ended:
    """A program that has ended: its exit code, none where its time was over, and what it printed."""

    def __init__(self, name, code, said, errors, seconds):
        self.name, self.code, self.said, self.errors, self.seconds = name, code, said, errors, seconds

    def last(self):
        """The end of all that it printed."""
        return (self.errors + self.said)[-KEPT:]

    def failed(self):
        """How it ended, in one line with the last one that it printed."""
        if self.code is None:
            how = f"{self.name} was not done after {self.seconds:.0f} s"
        elif self.code < 0:
            how = f"{self.name} was ended by signal {-self.code}"
        else:
            how = f"{self.name} ended with exit code {self.code}"
        lines = [line for line in (self.errors or self.said).splitlines() if line.strip()]
        return Failed(": ".join([how, *lines[-1:]]), error=self.last())

    def output(self):
        """What it has printed, if it has done its work."""
        if self.code != 0:
            raise self.failed()
        return self.said

    def object(self):
        """The JSON object that it has printed, whatever libraries have printed before."""
        start = re.search(r"^\{", self.said, re.MULTILINE)
        try:
            if start is None:
                raise ValueError("it begins nowhere")
            return json.JSONDecoder().raw_decode(self.said[start.start() :])[0]
        except ValueError as problem:
            raise (
                Failed(f"{self.name} printed no JSON object: {problem}", error=self.last())
                if self.code == 0
                else self.failed()
            ) from None

    def tests(self):
        """How many tests a test program has run, all of which have passed."""
        results = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)$", self.said, re.MULTILINE))
        result = re.search(r"^test result: ok\. (\d+) passed; 0 failed", self.said, re.MULTILINE)
        if self.code == 0 and result and result[1] != "0":
            return int(result[1])
        failed = [name for name, how in results.items() if how == "FAILED"]
        passed = len(results) - len(failed)
        found = {"passed": passed, "failed_tests": failed, "error": self.last()}
        if self.code == 0:
            raise Failed(f"{self.name} has run no test", **found)
        how = f"failed: {', '.join(failed)}" if failed else self.failed()
        raise Failed(f"{how}; {passed} passed", **found)


def run(arguments, seconds, folder, environment):
    """Runs a program for so many seconds at most. It and all that it has started are ended then."""
    arguments = [str(argument) for argument in arguments]
    # Files and no pipes: what was printed is there even where the program cannot be ended.
    with tempfile.TemporaryFile(dir=folder) as said, tempfile.TemporaryFile(dir=folder) as errors:
        try:
            child = subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as problem:
            raise Failed(f"{arguments[0]} cannot be started: {problem.strerror}") from None
        code = None
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                end(child)
        texts = []
        for file in [said, errors]:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ended(os.path.basename(arguments[0]), code, *texts, seconds)


def end(child):
    """Ends a program and all that it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(UNTIL_GIVEN_UP)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
