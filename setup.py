"""Install the folders of this checkout as one import package, fathom."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
FOLDERS = find_packages(str(HERE), exclude=["tests", "tests.*", "build", "build.*", "demo", "demo.*"])
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "__init__.py").read_text()).group(1)


class BuildWithoutSetup(build_py):
    """Keep setup.py out of the package whose folder it stands in."""

    def find_package_modules(self, package, package_dir):
        """All modules but setup.py."""
        return [module for module in super().find_package_modules(package, package_dir) if module[:2] != ("fathom", "setup")]


NEW, OLD = "python_version>='3.10'", "python_version<'3.10'"  # JetPack 5 has Python 3.8
RUN = [f"numpy>=1.26; {NEW}", f"onnxruntime>=1.20; {NEW}", f"numpy>=1.21; {OLD}", f"onnxruntime>=1.16; {OLD}", "Pillow>=10"]
TEXT = ["tokenizers>=0.22"]
BUILD = ["onnx>=1.20,<2", "onnxruntime>=1.23,<2", "ml_dtypes>=0.5", "safetensors>=0.5,<1"]  # releases that still serve Python 3.10
EXPORT = [
    "torch>=2.13,<3",
    "transformers>=5.20,<6",
    "diffusers>=0.42,<1",
    "onnx>=1.23,<2",
    "onnxscript>=0.7.2,<1",
    "onnx-ir>=1.1,<2",
    "onnxruntime>=1.31,<2",
    "safetensors>=0.8,<1",
    *TEXT,
]
CLIP = ["open_clip_torch>=3.3,<4"]  # brings torchvision along; the towers do without, but transformers takes it where it is, so it has to fit the torch
RTX = ["tensorrt-rtx==1.7.1.116"]
CUDA = ["cuda-bindings>=12.6,<14"]
GPU = ["onnxruntime-gpu[cuda,cudnn]>=1.23,<2"]  # instead of onnxruntime: both install one folder of the same name
TENSORRT = ["tensorrt>=10.3"]  # for desktops and servers; a Jetson has the one of JetPack
PYCUDA = ["pycuda>=2026.1"]  # source only: pip compiles it, with the CUDA toolkit
VIDEO = ["av>=12"]
EXR = ["OpenEXR>=3.3"]
SIGNED = ["cryptography>=42"]
ROS = ["rosbags>=0.11.9,<0.12"]
RAY = ["ray[data]>=2.50,<3"]
TRITON = ["tritonclient[grpc]>=2.50,<3", "onnx>=1.20,<2"]
BENCH = ["h5py>=3.10", "scipy>=1.11", "matplotlib>=3.9"]
DEV = [
    "pytest>=9",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff==0.17.5",
    "jsonschema>=4.20",
    "scikit-image>=0.26,<1",
    "build>=1.2",
    "setuptools>=77",
    "wheel",
]

setup(
    name="fathom-depth",
    version=VERSION,
    description="Vision-language depth networks from a PyTorch checkpoint to ONNX and TensorRT engines, and a lean runtime for them",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.8",  # the runtime alone; everything else wants 3.10, as its dependencies do
    packages=["fathom", *(f"fathom.{folder}" for folder in FOLDERS)],
    package_dir={"fathom": "."},
    package_data={
        "fathom": ["py.typed"],
        "fathom.runtime": ["artefact/schemas/*.json", "certificate/*.json", "kernels/*"],
        "fathom.export": ["lowering/*.json"],
        "fathom.trt_plugins": ["csrc/*", "tensorrt/*"],
        "fathom.models": ["keys/*", "weights/*"],
        "fathom.datasets": ["*.json"],
        "fathom.benchmarks": ["record/schemas/*.json", "demo/*.css", "demo/*.js"],
    },
    install_requires=RUN,
    extras_require={
        "build": BUILD,
        "export": EXPORT,
        "clip": CLIP,
        "rtx": RTX,
        "tensorrt": TENSORRT,
        "gpu": GPU,
        "cuda": CUDA,
        "pycuda": PYCUDA,
        "video": VIDEO,
        "ros": ROS,
        "triton": TRITON,
        "signed": SIGNED,
        "ray": RAY,
        "exr": EXR,
        "bench": BENCH,
        "text": TEXT,
        "progress": ["tqdm>=4.60"],
        "dev": [*EXPORT, *CLIP, *RTX, *CUDA, *VIDEO, *ROS, *TRITON, *SIGNED, *EXR, *BENCH, *DEV, "tqdm>=4.60"],
    },
    entry_points={
        "console_scripts": [
            "depth-run = fathom.runtime.commands.run:main",
            "depth-calibrate-scale = fathom.runtime.commands.scale_command:main",
            "depth-doctor = fathom.runtime.commands.doctor:main",
            "depth-inspect = fathom.runtime.commands.inspection:main",
            "depth-export = fathom.export.commands.export_command:main",
            "depth-build = fathom.export.commands.build_command:main",
            "depth-calibrate = fathom.export.commands.calibrate_command:main",
            "depth-triton = fathom.export.commands.triton_command:main",
            "depth-bench = fathom.benchmarks.bench_command:main",
            "depth-train = fathom.export.commands.train_command:main",
        ]
    },
    cmdclass={"build_py": BuildWithoutSetup},
)
