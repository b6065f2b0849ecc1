"""Gathers what `tests/gpu` has built in a folder that can go to another machine.

  python packed.py MESSAGES FOLDER

MESSAGES is what Cargo says of the test programs that it has built: they are copied under names of their own. FOLDER, which holds other
programs already, gets in `lib` the libraries that its programs are linked to, except those that every Linux has. Prints which libc they
need.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Cargo's target and its kind, and the name that the program gets.
PROGRAMS = {("device", "test"): "device", ("obsdiff_engine", "lib"): "operations", ("obsdiff_worker", "lib"): "collectives"}
# A machine's own: its libc, and the libraries of its compiler, of which its other programs may need a newer one.
OWN = r"linux-vdso\.so|(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\+\+))\.so"

messages, folder = sys.argv[1], Path(sys.argv[2])
for line in Path(messages).read_text().splitlines():
    message = json.loads(line)
    target = message.get("target", {})
    name = PROGRAMS.get((target.get("name"), (target.get("kind") or [None])[0]))
    if name and message.get("executable") and message["profile"]["test"]:
        shutil.copy(message["executable"], folder / name)
missing = [name for name in PROGRAMS.values() if not (folder / name).exists()]
if missing:
    sys.exit(f"tests/gpu: Cargo has not built {', '.join(missing)}")

programs = [path for path in folder.iterdir() if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]
(folder / "lib").mkdir()
for program in programs:
    for line in subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.splitlines():
        name, _, path = line.split(" (")[0].strip().partition(" => ")
        if re.match(OWN, Path(name).name):
            continue
        if not path.startswith("/"):
            sys.exit(f"tests/gpu: {name}, which {program.name} needs, is not on this machine")
        shutil.copy(path, folder / "lib" / name)
libc = max(
    tuple(map(int, found.split(b".")))
    for path in [*programs, *(folder / "lib").iterdir()]
    for found in re.findall(rb"GLIBC_([0-9]+\.[0-9]+)\b", path.read_bytes())
)
print(f"{', '.join(sorted(path.name for path in programs))} need glibc {'.'.join(map(str, libc))} or newer")
