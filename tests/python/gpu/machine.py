"""What this machine has of what obsdiff needs on a GPU: the driver, CUDA's libraries and tools, and where they lie."""

import glob
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from programs import Failed, Missing, run

# The libraries, each with the name that programs look for first. A folder with links of these names comes before all others: a machine may
# have several versions of a library.
DRIVERS_LIBRARY = "libcuda.so.1"
LIBRARIES = {
    DRIVERS_LIBRARY: "libcuda.so",
    "libcublas.so.13": "libcublas.so",
    "libcusolver.so.12": "libcusolver.so",
    "libnccl.so.2": "libnccl.so",
}
# Where they lie, if neither LD_LIBRARY_PATH nor Python's packages nor the system's own folders have them.
USUAL = [
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-13*/lib64",
    "/usr/lib/wsl/lib",
    f"{sys.prefix}/lib",
]
# Drivers that CUDA 13 brings for machines whose own one is older, and tools.
COMPATIBLE = "/usr/local/cuda*/compat"
TOOLS = ["/usr/local/nvidia/bin", "/usr/local/cuda/bin", "/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer"]
# The CUDA version whose PTX the kernels are, as a driver says it, and the first driver of it.
VERSION, DRIVER = 13000, 580

# Programs of obsdiff.
PACKED = ["obsdiff", "device", "operations", "collectives", "device_times"]

# Loads each library as programs do, and asks the driver what it is. Printed line by line: the driver may end the process.
PROBE = """
import ctypes, json, sys
for name in sys.argv[1:]:
    try:
        library = ctypes.CDLL(name)
    except OSError as problem:
        print(json.dumps([name, None, str(problem)]), flush=True)
        continue
    paths = [line.split(None, 5)[-1].strip() for line in open("/proc/self/maps") if name.split(".so")[0] + ".so" in line]
    print(json.dumps([name, paths[0] if paths else name, None]), flush=True)
    if name == "libcuda.so.1":
        number = ctypes.c_int()
        library.cuDriverGetVersion(ctypes.byref(number))
        print(json.dumps(["version", number.value, None]), flush=True)
        print(json.dumps(["start", library.cuInit(0), None]), flush=True)
"""


class Machine:
    """This machine. `cannot` says, once libraries were looked for, why no GPU can be used; `lacks` those that were not found, with why; `driver`
    is where the driver's library lies."""

    def __init__(self, folder):
        self.folder = folder
        self.cannot = self.driver = None
        self.lacks = {}
        tools = [path for pattern in TOOLS for path in sorted(glob.glob(pattern))]
        self.environment = {
            **os.environ,
            "PATH": ":".join([os.environ.get("PATH", "/usr/bin:/bin"), *tools]),
            "OBSDIFF_GOLDENS": str(folder / "goldens"),
            # Drivers keep the kernels that they have compiled, so that each process need not do it again.
            "CUDA_CACHE_DISABLE": "0",
            "CUDA_CACHE_PATH": str(folder / "compiled"),
            # What NCCL says of its troubles, away from what programs print.
            "NCCL_DEBUG": "WARN",
            "NCCL_DEBUG_FILE": str(folder / "nccl.log"),
        }
        self.use(self.folders())

    def folders(self):
        """Where libraries are looked for: what the environment says, Python's packages, and the usual folders."""
        stated = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        packages = [path for base in sys.path for path in sorted(glob.glob(f"{base}/nvidia/*/lib"))]
        usual = [path for pattern in USUAL for path in sorted(glob.glob(pattern))]
        # What CUDA has for linkers is no driver.
        found = [path for path in stated if path and Path(path).name != "stubs"] + packages
        return found + [path for path in usual if any(os.path.exists(f"{path}/{name}") for name in LIBRARIES)]

    def use(self, folders):
        """Has programs look for libraries in these folders, and last of all in that of the libraries that were packed with them."""
        self.environment["LD_LIBRARY_PATH"] = ":".join([*map(str, folders), str(self.folder / "lib")])

    def described(self):
        """What may matter for what is found."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        processors = re.findall(r"^model name\s*: (.*)$", read("/proc/cpuinfo"), re.MULTILINE)
        return {
            "system": platform.platform(),
            "libc": " ".join(platform.libc_ver()),
            "python": f"{platform.python_version()} at {sys.executable}",
            "processor": processors[0] if processors else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": memory,
            "shared_memory_bytes": free("/dev/shm"),
            "free_disk_bytes": free(self.folder),
            "user": os.getuid(),
        }

    def run(self, program, arguments, seconds, **settings):
        """Runs a packed program, or one of the machine's by its name."""
        path = self.folder / program
        if program not in PACKED:
            path = shutil.which(program, path=self.environment["PATH"])
            if path is None:
                raise Missing(f"{program} is not installed")
        return run([path, *arguments], seconds, self.folder, {**self.environment, **settings})

    def python(self, script, arguments, seconds):
        """Runs a packed script, in the environment as it is without obsdiff: PyTorch finds its own libraries. The driver's folder is added where
        programs would not find the driver without it."""
        environment = dict(os.environ)
        loads = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({DRIVERS_LIBRARY!r})"]
        if self.driver is not None and run(loads, seconds, self.folder, environment).code != 0:
            stated = environment.get("LD_LIBRARY_PATH", "")
            environment["LD_LIBRARY_PATH"] = ":".join(filter(None, [stated, str(self.driver.parent)]))
        return run([sys.executable, self.folder / script, *arguments], seconds, self.folder, environment)

    def probe(self, left):
        """What programs would find now: the path of each library, or none and why."""
        ended = run([sys.executable, "-c", PROBE, *LIBRARIES], left(), self.folder, self.environment)
        answers = {}
        for line in ended.said.splitlines():
            name, value, problem = json.loads(line)
            answers[name] = (value, problem)
        if ended.code is None:
            self.cannot = f"loading the libraries {ended.failed()}"
        if ended.code != 0:
            raise ended.failed()
        return answers

    def look(self, left):
        """Looks for the libraries, and has programs use those that were found. Fails where no GPU can be used with them."""
        folders = self.folders()
        answers = self.probe(left)
        found = {}
        version = answers.get("version", (0, None))[0]
        for compatible in sorted(glob.glob(COMPATIBLE), reverse=True):
            if version >= VERSION or answers[DRIVERS_LIBRARY][0] is None:
                break
            # Its compiler of PTX lies beside it.
            self.use([compatible, *folders])
            newer = self.probe(left)
            if newer.get("version", (0, None))[0] >= VERSION and newer["start"][0] == 0:
                answers, folders = newer, [compatible, *folders]
                found["instead_of_driver_for"] = version
                version = newer["version"][0]
        links = self.folder / "links"
        links.mkdir(exist_ok=True)
        for name, link in LIBRARIES.items():
            path, problem = answers[name]
            if path is None:
                self.lacks[name] = f"{name} was not found: {problem}"
            else:
                found[name] = path
                if name == DRIVERS_LIBRARY:
                    self.driver = Path(path)
                for alias in [name, link]:
                    (links / alias).unlink(missing_ok=True)
                    (links / alias).symlink_to(path)
        self.use([links, *folders])
        found.update(cuda_version=version, folders=folders)
        started = answers.get("start", (0, None))[0]
        if DRIVERS_LIBRARY in self.lacks:
            self.cannot = self.lacks[DRIVERS_LIBRARY]
        elif version < VERSION:
            self.cannot = f"the driver is for CUDA {version // 1000}.{version % 1000 // 10}, but obsdiff needs 13.0: driver {DRIVER} or newer"
        elif started != 0:
            self.cannot = f"the driver does not start: cuInit gives {started}"
        else:
            self.cannot = next((self.lacks[name] for name in LIBRARIES if name in self.lacks and "nccl" not in name), None)
        if self.cannot is not None:
            raise Failed(f"no GPU can be used: {self.cannot}", **found, lacks=self.lacks)
        return {**found, "lacks": self.lacks}

    def needs_gpu(self):
        """Ends a step that needs a GPU where none can be used."""
        if self.cannot is not None:
            raise Missing(f"a GPU: {self.cannot}")

    def needs(self, name):
        """Ends a step that needs a library where it is not there."""
        if name in self.lacks:
            raise Missing(self.lacks[name])

    def has_torch(self):
        """Whether the Python that runs this has PyTorch."""
        return importlib.util.find_spec("torch") is not None


def read(path):
    """The text of a file; nothing where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def free(path):
    """Bytes that are free on the disk of a path; none where there is none."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
