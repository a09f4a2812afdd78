"""Facts about the Jetson that this runs on, and which package of JetPack fixes what is missing.

On a Jetson TensorRT, CUDA and the driver come with JetPack, from NVIDIA's apt server; the wheels of PyPI for aarch64 are made for servers
and hold no kernels for Orin. Everything is read from small files, so that it also works in containers and without root.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path("/")
RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")
BOARD = re.compile(r"NVIDIA.*(Jetson|Xavier|Orin|Thor)")
POWER_MODEL = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
PACKAGES = ("nvidia-jetpack", "nvidia-l4t-core", "nvidia-l4t-cuda", "nvidia-l4t-dla-compiler", "tensorrt", "python3-libnvinfer")
# NVIDIA's JetPack archive: the first JetPack of each Jetson Linux (L4T) release.
JETPACKS = {
    (35, 1): "5.0.2",
    (35, 2, 1): "5.1",
    (35, 3, 1): "5.1.1",
    (35, 4, 1): "5.1.2",
    (35, 5): "5.1.3",
    (35, 6): "5.1.4",
    (35, 6, 1): "5.1.5",
    (35, 6, 4): "5.1.6",
    (36, 2): "6.0 (developer preview)",
    (36, 3): "6.0",
    (36, 4): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 5): "6.2.2",
    (38, 2): "7.0",
    (38, 4): "7.1",
    (39, 2): "7.2",
}
PYTHONS = {35: (3, 8), 36: (3, 10), 38: (3, 12), 39: (3, 12)}  # the only one that TensorRT's bindings of that JetPack are for
XAVIERS = ("Xavier", "Jetson-AGX")  # the device tree calls the AGX Xavier kit Jetson-AGX
WITH_DLA = (*XAVIERS, "Orin NX", "AGX Orin")
NO_DLA = (
    "a Jetson has one GPU, so there is no --device to choose, and the DLA is not used: it computes convolutions but neither attention nor "
    "layer norms, so every block would go back and forth between DLA and GPU"
)
SERVER_WHEELS = ("tensorrt-cu11", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-libs")


@dataclass(frozen=True)
class Remark:
    """Something to know about this Jetson; ``fix`` is empty if nothing has to be done."""

    says: str
    fix: str = ""


@dataclass(frozen=True)
class Jetson:
    """One Jetson.

    Args:
        model: of the device tree; empty in most containers.
        l4t: release of Jetson Linux, such as (36, 4, 3); empty if unknown.
        packages: name -> version of what dpkg holds of JetPack.
        power_mode, fastest: (number, name) of the power mode that is set, and of the one without limits; None if unknown.
        container: whether this is inside one.
        python: release of this Python.
        hides_system: whether this is a virtual environment that does not see the system's packages.
        server_wheels: TensorRT packages that pip installed.
    """

    model: str = ""
    l4t: tuple[int, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    power_mode: tuple[int, str] | None = None
    fastest: tuple[int, str] | None = None
    container: bool = False
    python: tuple[int, int] = (3, 10)
    hides_system: bool = False
    server_wheels: tuple[str, ...] = ()

    @property
    def jetpack(self) -> str:
        """JetPack's release, or an empty string if this Jetson Linux is in none that is known here."""
        known = [release for release in JETPACKS if release[:2] == self.l4t[:2] and release <= self.l4t]
        return JETPACKS[max(known)] if known else ""

    @property
    def words(self) -> str:
        """Board, release and power mode, for people."""
        parts = [self.model or "a Jetson", f"L4T {'.'.join(map(str, self.l4t))}" if self.l4t else "L4T unknown"]
        parts += [f"JetPack {self.jetpack}"] if self.jetpack else []
        parts += [f"TensorRT {self.packages['tensorrt']}"] if "tensorrt" in self.packages else []
        parts += [f"power mode {self.power_mode[1]}"] if self.power_mode else []
        return ", ".join(parts + ["in a container"] * self.container)

    def tensorrt_fix(self) -> str:
        """How TensorRT gets into this Python."""
        wanted = PYTHONS.get(self.l4t[0]) if self.l4t else None
        if self.container and "tensorrt" not in self.packages:
            return "start the container from an image of this JetPack that holds TensorRT (nvcr.io/nvidia/l4t-jetpack), with --runtime nvidia"
        missing = [name for name in ("tensorrt", "python3-libnvinfer") if name not in self.packages]
        if missing:
            return f"sudo apt install {' '.join(missing)} (JetPack's; the wheels of PyPI are not for Jetson)"
        if wanted and wanted != self.python:
            word = ".".join(map(str, wanted))
            return f"python{word} -m venv --system-site-packages VENV: TensorRT of JetPack {self.jetpack or self.l4t[0]} is for Python {word} only"
        if self.hides_system:
            return "python3 -m venv --system-site-packages VENV, and install Fathom there: this environment does not see JetPack's packages"
        if self.server_wheels:
            return f"pip uninstall -y {' '.join(self.server_wheels)}: they hide the TensorRT of JetPack"
        return "sudo apt install --reinstall tensorrt python3-libnvinfer"

    def remarks(self) -> list[Remark]:
        """What stands in the way, then what to know."""
        found = []
        if not self.l4t:
            where = "mount /etc/nv_tegra_release into the container" if self.container else "sudo apt install --reinstall nvidia-l4t-core"
            found.append(Remark("the release of Jetson Linux is not known", where))
        elif not self.jetpack:
            found.append(Remark(f"L4T {'.'.join(map(str, self.l4t))} is in no JetPack that is known here", "JetPack 6.1 or later, by NVIDIA's SDK Manager"))
        core = release_of(self.packages.get("nvidia-l4t-core", ""))
        if core and self.l4t and core != self.l4t:
            was = f"/etc/nv_tegra_release says L4T {'.'.join(map(str, self.l4t))}, nvidia-l4t-core is {'.'.join(map(str, core))}"
            found.append(Remark(f"{was}: an upgrade was not finished", "sudo apt full-upgrade, and restart"))
        if "nvidia-l4t-cuda" not in self.packages and not self.container:
            found.append(Remark("the package nvidia-l4t-cuda, which holds the driver's libcuda, is missing", "sudo apt install nvidia-l4t-cuda"))
        missing = [name for name in ("tensorrt", "python3-libnvinfer") if name not in self.packages]
        if missing:
            found.append(Remark(f"missing of JetPack: {' and '.join(missing)}", self.tensorrt_fix()))
        elif (wanted := PYTHONS.get(self.l4t[0]) if self.l4t else None) and wanted != self.python:
            found.append(Remark(f"this is Python {self.python[0]}.{self.python[1]}", self.tensorrt_fix()))
        elif self.hides_system:
            found.append(Remark("this virtual environment hides the system's packages, TensorRT among them", self.tensorrt_fix()))
        if self.l4t[:1] == (36,) and not missing and "nvidia-l4t-dla-compiler" not in self.packages and not self.container:
            says = "the package nvidia-l4t-dla-compiler is missing: TensorRT does not load without its libnvdla_compiler.so, though no DLA is used"
            found.append(Remark(says, "sudo apt install nvidia-l4t-dla-compiler"))
        if self.server_wheels and self.l4t[:1] < (39,):
            says = f"{' and '.join(self.server_wheels)} came from PyPI and hold no kernels for this GPU"
            found.append(Remark(says, f"pip uninstall -y {' '.join(self.server_wheels)}"))
        if self.power_mode and self.fastest and self.power_mode != self.fastest:
            found.append(
                Remark(f"power mode {self.power_mode[1]} holds the clocks down", f"sudo nvpmodel -m {self.fastest[0]} ({self.fastest[1]}), to measure")
            )
        if not self.model or any(name in self.model for name in WITH_DLA):
            found.append(Remark(NO_DLA))
        return found


def read_jetson(root: Path | None = None) -> Jetson | None:
    """The Jetson that this is, or None on any other machine.

    Args:
        root: of the file system; None for ``ROOT``.
    """
    root = root or ROOT
    release, kernel = _text(root / "etc/nv_tegra_release"), _text(root / "proc/sys/kernel/osrelease").strip()
    model, packages = _text(root / "proc/device-tree/model").strip("\0\n "), _installed(root / "var/lib/dpkg/status")
    if not (release or BOARD.search(model) or kernel.endswith("-tegra") or "nvidia-l4t-core" in packages):
        return None
    found = RELEASE.search(release)
    l4t = _numbers(f"{found[1]}.{found[2]}") if found else release_of(packages.get("nvidia-l4t-core", ""))
    prefix = root / sys.prefix.lstrip("/")
    settings = _text(prefix / "pyvenv.cfg").lower().replace(" ", "")
    modes = {int(number): name for number, name in POWER_MODEL.findall(_text(root / "etc/nvpmodel.conf"))}
    set_mode = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    number = int(set_mode[1]) if set_mode else None
    unlimited = sorted(((number, name) for number, name in modes.items() if name.startswith("MAXN")), key=lambda mode: ("SUPER" not in mode[1], mode))
    return Jetson(
        model,
        l4t,
        {name: version for name, version in packages.items() if name in PACKAGES},
        None if number is None else (number, modes.get(number, f"number {number}")),
        unlimited[0] if unlimited else None,
        any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
        sys.version_info[:2],
        bool(settings) and "include-system-site-packages=true" not in settings,
        tuple(name for name in SERVER_WHEELS if _has_wheel(name)),
    )


def release_of(version: str) -> tuple[int, ...]:
    """L4T release of a version of nvidia-l4t-core, such as ``36.4.3-20250107174145``; empty for anything else."""
    found = re.match(r"(\d+\.\d+(?:\.\d+)*)-", version)
    return _numbers(found[1]) if found else ()


def tensorrt_fix(backend: str, otherwise: str) -> str:
    """The command that brings a TensorRT package: JetPack's on a Jetson, ``otherwise`` on any other machine."""
    jetson = read_jetson()
    if jetson is None:
        return otherwise
    if backend == "tensorrt-rtx":
        return "TensorRT-RTX does not run on a Jetson: build with --backend tensorrt on this machine"
    return jetson.tensorrt_fix()


def tensorrt_upgrade() -> str:
    """How to get a TensorRT that runs here (8.5, 8.6, or 10.3 and later): by JetPack on a Jetson; an apt or pip upgrade there breaks what JetPack brought."""
    jetson = read_jetson()
    if jetson is None:
        return "pip install 'tensorrt>=10.3'"
    if any(name in jetson.model for name in XAVIERS):
        return "JetPack 5.1.2 or later, by NVIDIA's SDK Manager: it holds TensorRT 8.5.2, the last for Xavier; or --backend onnxruntime"
    return "JetPack 6.1 or later (TensorRT 10.3) or 5.1.2 (8.5.2), by NVIDIA's SDK Manager"


def _numbers(words: str) -> tuple[int, ...]:
    numbers = tuple(map(int, words.split(".")))
    while len(numbers) < 3:
        numbers += (0,)
    return numbers


def _installed(status: Path) -> dict[str, str]:
    """name -> version of the packages that dpkg calls installed."""
    found = {}
    for entry in _text(status).split("\n\n"):
        facts = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        if facts.get("Status", "").endswith(" installed") and "Version" in facts:
            found[facts.get("Package", "")] = facts["Version"]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _has_wheel(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
