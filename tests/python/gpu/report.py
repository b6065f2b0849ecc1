"""What was found, in a file that is whole at any time."""

import json
import os
import signal
import sys
import time

from programs import Failed, Missing


class Stopped(BaseException):
    """Somebody ends this program."""


class Report:
    """The file of what was found. `found` holds what each step has found, `ok`, `failed` and `missing` how it ended: the last two with why,
    in one line. `running` names the step that had not ended when the file was written."""

    def __init__(self, path, seconds, usual):
        self.path = path
        # Limits of steps are for the usual time of all.
        self.seconds, self.share = seconds, seconds / usual
        self.began = self.deadline = time.monotonic()
        self.ok, self.failed, self.missing, self.found, self.reached = [], {}, {}, {}, {}
        self.running = None
        self.machine = {}
        for number in [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]:
            signal.signal(number, self.stop)
        self.write()

    def left(self):
        """Seconds that are left for the step."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Missing("time: the steps before it took all")
        return left

    def write(self):
        """Writes the file again. Where that fails it goes on: what was found is also printed in the end."""
        names = ["machine", "ok", "failed", "missing", "running", "reached", "found"]
        whole = {name: getattr(self, name) for name in names}
        whole["seconds"] = time.monotonic() - self.began
        self.text = json.dumps(whole, indent=2) + "\n"
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(self.text)
            os.replace(new, self.path)
            self.unwritten = None
        except OSError as problem:
            self.unwritten = f"{self.path} cannot be written: {problem}"

    def step(self, name, limit):
        """Does a step now, within so many seconds, and writes what it returns, why it failed or what it lacks."""

        def run(body):
            start = time.monotonic()
            self.deadline = min(start + limit * self.share, self.began + self.seconds)
            self.running = name
            self.write()
            try:
                self.keep(name, body() or {})
                self.ok.append(name)
                how = "ok"
            except Missing as missing:
                self.keep(name, missing.found)
                self.missing[name] = str(missing)
                how = f"missing: {missing}"
            except Failed as failed:
                self.keep(name, failed.found)
                self.failed[name] = str(failed)
                how = f"failed: {failed}"
            except Stopped as stopped:
                self.failed[name] = str(stopped)
                self.end()
            except Exception as fault:
                self.failed[name] = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
                how = f"failed: {self.failed[name]}"
            self.running = None
            self.write()
            print(f"{name}: {time.monotonic() - start:.0f} s, {how}", flush=True)

        return run

    def keep(self, name, found):
        """Keeps what a step has found so far, whatever happens to the rest of it."""
        if found:
            self.found.setdefault(name, {}).update(found)
            self.write()

    def say(self, what, value):
        """Gives a ratio beside those that are held to something."""
        self.reached[what] = {"value": value}

    def reach(self, what, value, most=None, least=None):
        """Holds a ratio to what it is meant to be."""
        met = value <= most if most is not None else value >= least
        limit = {"at most": most} if most is not None else {"at least": least}
        self.reached[what] = {"value": value, **limit, "met": met}

    def end(self):
        """Writes all, and ends this program: with 1 where a step failed."""
        self.write()
        if self.unwritten is not None:
            print(self.text)
            print(self.unwritten, file=sys.stderr)
        sys.exit(1 if self.failed or self.unwritten else 0)

    def stop(self, number, _):
        """Ends the step that is running, so that what it has started ends, too, or else this program."""
        stopped = f"{signal.Signals(number).name} ended it"
        if self.running is not None:
            raise Stopped(stopped)
        self.failed["the rest"] = stopped
        self.end()
