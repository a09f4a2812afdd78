"""What is in a bundle and in a plan: network, contract, stages, and every file with its size and SHA-256."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ..sequences import zip_equal
from .contract import Contract
from .operator_use import OperatorUse
from .spec import DTYPES, FILE_NAME, NETWORK_NAME, PRECISIONS, StageSpec, TensorSpec, check_chain, fields

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
RUNS_OPERATORS = {"onnxruntime": ("bodies",), "tensorrt": ("kernel-stages", "plugins"), "tensorrt-rtx": ("kernel-stages",)}
SHA256 = re.compile(r"[0-9a-f]{64}")
GOLDENS = "goldens/case.bin"
MAX_FILES = 4096
GREATEST_BATCH = 1024
MAX_FILE_BYTES = 1 << 40
MAX_PARAMETERS = 1 << 50


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 (64 hexadecimal digits) of one file of an artefact.

    Raises:
        ValueError: if a value is out of range or not of that form.
    """

    size: int
    sha256: str

    def __post_init__(self):
        if not 0 <= self.size <= MAX_FILE_BYTES:
            raise ValueError(f"file size {self.size}, wanted 0 to {MAX_FILE_BYTES}")
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"not a SHA-256: {self.sha256!r}")


@dataclass(frozen=True)
class NetworkFacts:
    """Which network this is and where its numbers come from.

    ``weights`` holds ``kind`` (``published``, ``trained``, ``demo``, ``random-init``, ``foreign``), ``file``, ``sha256``,
    ``licence`` and ``warnings``.

    Raises:
        ValueError: if the name could lead out of a folder or holds control characters, or a value is not of its kind.
    """

    name: str
    variant: str
    config: dict[str, Any]
    parameters: int
    weights: dict[str, Any]

    def __post_init__(self):
        if not NETWORK_NAME.fullmatch(self.name):
            raise ValueError(f"network.name: {self.name!r}, wanted up to 128 characters without / and \\, not beginning with a dot")
        kinds = {"kind": str, "file": str, "sha256": str, "licence": str, "warnings": list}
        fields(self.weights, "network.weights", **kinds)
        if not 0 <= self.parameters < MAX_PARAMETERS:
            raise ValueError(f"network.parameters: {self.parameters}")

    @property
    def called(self) -> str:
        """Name and variant, as results say which network made them."""
        return f"{self.name} {self.variant}".strip()

    @property
    def scene(self) -> str:
        """The kind of room that was built in at export, which changes what the network says; empty for all networks but such ones."""
        scene = self.config.get("scene")
        return scene if isinstance(scene, str) else ""

    @property
    def untrained(self) -> bool:
        """True if the weights are random: the depth is meaningless."""
        return self.weights["kind"] == "random-init"


@dataclass(frozen=True)
class BundleStage:
    """One ONNX stage of a bundle.

    Args:
        spec: name and tensors.
        file: path of the ONNX graph inside the bundle; its weights lie beside it in ``<file>.data``.
        precision: of the graph as it stands.
        fp32_islands: regular expressions over module paths that stay FP32 when the stage is typed FP16.
        folded: what was folded into constants at export, as counts by kind.
    """

    spec: StageSpec
    file: str
    precision: str
    fp32_islands: tuple[str, ...] = ()
    folded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Initializer:
    """One tensor that lies raw in a file of a plan, and where: a weight of an ONNX Runtime engine, or a golden tensor."""

    tensor: TensorSpec
    offset: int


@dataclass(frozen=True)
class PlanStage:
    """One engine of a plan.

    Args:
        spec: name and tensors, batch fixed where the engine fixes it.
        engine: path inside the plan: a raw TensorRT plan, or an ONNX graph for ONNX Runtime.
        precision: what the stage was built in.
        weights: path inside the plan of an ONNX Runtime engine's weights, or ``""``.
        initializers: the tensors in that file.
    """

    spec: StageSpec
    engine: str
    precision: str
    weights: str = ""
    initializers: tuple[Initializer, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Facts that a bundle and a plan share.

    Args:
        network: name, variant, config, parameters, origin of the weights.
        contract: input, output, protocols.
        stages: ``BundleStage`` or ``PlanStage``, in running order.
        files: every other file of the artefact, by path.
        made_with: versions of Fathom and of the packages that made it.
    """

    network: NetworkFacts
    contract: Contract
    stages: tuple[Any, ...]
    files: dict[str, FileFacts]
    made_with: dict[str, str]

    def __post_init__(self):
        specs = tuple(stage.spec for stage in self.stages)
        if not specs:
            raise ValueError("there is no stage")
        check_chain(specs)
        if len(self.files) > MAX_FILES:
            raise ValueError(f"{len(self.files)} files, at most {MAX_FILES} were wanted")
        for name in self.files:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"unsafe file name {name!r}")
        for stage in self.stages:
            if stage.precision not in PRECISIONS:
                raise ValueError(f"stage {stage.spec.name}: unknown precision {stage.precision!r}")
            for name in self.stage_files(stage):
                if name not in self.files:
                    raise ValueError(f"stage {stage.spec.name} names the file {name!r}, which is not listed")
        outputs = {tensor.name for spec in specs for tensor in spec.outputs}
        inputs = {tensor.name for spec in specs for tensor in spec.inputs} - outputs
        if self.contract.input.tensor not in inputs:
            raise ValueError(f"no stage takes the input tensor {self.contract.input.tensor!r}")
        if self.contract.output.tensor not in outputs:
            raise ValueError(f"no stage makes the output tensor {self.contract.output.tensor!r}")
        self._check_picture(specs)
        text = self.contract.text
        if text and (
            not {name for name in (text.ids, text.mask) if name} <= inputs or text.tokenizer not in (*self.files, "" if text.kind == "choice" else None)
        ):
            raise ValueError(f"the text wants the input tensors {text.ids} {text.mask} and the file {text.tokenizer}, which are not all there")

    def _check_picture(self, specs: tuple[StageSpec, ...]) -> None:
        wanted = (3, *self.contract.input.canvas)
        for tensor in (tensor for spec in specs for tensor in spec.inputs if tensor.name == self.contract.input.tensor):
            if len(tensor.shape) != 4 or tensor.shape[1:] != wanted:
                raise ValueError(f"the input tensor {tensor.name} has the shape {tensor.shape}, and the contract's picture is [batch, {wanted}]")
            if isinstance(tensor.shape[0], int) and not 1 <= tensor.shape[0] <= GREATEST_BATCH:
                raise ValueError(f"the input tensor {tensor.name} takes {tensor.shape[0]} windows at once, wanted 1 to {GREATEST_BATCH}")

    def stage_files(self, stage: Any) -> tuple[str, ...]:
        """The files of one stage."""
        raise NotImplementedError

    def specs(self) -> tuple[StageSpec, ...]:
        """The specs of all stages, in running order."""
        return tuple(stage.spec for stage in self.stages)


@dataclass(frozen=True)
class BundleManifest(Manifest):
    """``bundle.json``: a portable directory of ONNX stages.

    Args:
        goldens: paths of the safetensors files with PyTorch FP32 inputs and stage outputs.
        parity: the table of the parity gate (see ``export/parity/parity.py``), or ``{}``.
    """

    goldens: tuple[str, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)

    def stage_files(self, stage: BundleStage) -> tuple[str, ...]:
        """The ONNX graph; its ``.data`` beside it where there is one."""
        data = stage.file + ".data"
        return (stage.file, data) if data in self.files else (stage.file,)


@dataclass(frozen=True)
class PlanManifest(Manifest):
    """``plan.json``: engines for one backend, in one file.

    Args:
        backend: one of ``BACKENDS``.
        backend_version: of the package that compiled the engines.
        targets: compute capabilities (``sm86``), or for ONNX Runtime ``cpu`` or ``cuda``.
        precision: what was asked for.
        batch: min, opt and max batch size.
        bundle_sha256: of the ``bundle.json`` it was built from.
        goldens: inputs of the network and outputs of every stage for one case, with concrete shapes, in the file ``GOLDENS``; empty in plans
            that cannot certify themselves.
        operators: our own operators in its engines and between them; None if there are none.
    """

    backend: str = "onnxruntime"
    backend_version: str = ""
    targets: tuple[str, ...] = ()
    precision: str = "fp32"
    batch: tuple[int, int, int] = (1, 1, 1)
    bundle_sha256: str = ""
    goldens: tuple[Initializer, ...] = ()
    operators: OperatorUse | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown backend {self.backend!r}, wanted one of {', '.join(BACKENDS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}")
        if (
            len(self.batch) != 3
            or not all(isinstance(b, int) for b in self.batch)
            or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= GREATEST_BATCH
        ):
            raise ValueError(f"batch: 1 <= min <= opt <= max <= {GREATEST_BATCH} was wanted, got {self.batch}")
        fixed = {t.shape[0] for stage in self.stages for t in stage.spec.inputs if t.name == self.contract.input.tensor and isinstance(t.shape[0], int)}
        if fixed - {self.batch[0]} or (fixed and self.batch[0] != self.batch[2]):
            raise ValueError(f"batch: {self.batch}, and the input tensor takes {fixed.pop()} windows at once")
        if not SHA256.fullmatch(self.bundle_sha256):
            raise ValueError(f"bundle_sha256: {self.bundle_sha256!r}")
        for stage in self.stages:
            size = self.files[stage.weights].size if stage.weights else 0
            for item in stage.initializers:
                if not 0 <= item.offset <= size - _nbytes(item.tensor):
                    raise ValueError(f"stage {stage.spec.name}: the weight {item.tensor.name} lies outside its file")
        if self.goldens:
            self._check_goldens()
        if self.operators and self.operators.runs_as not in RUNS_OPERATORS[self.backend]:
            raise ValueError(f"operators run as {self.operators.runs_as} on {self.backend}")

    def _check_goldens(self) -> None:
        specs = {tensor.name: tensor for stage in self.stages for tensor in stage.spec.inputs + stage.spec.outputs}
        if sorted(item.tensor.name for item in self.goldens) != sorted(specs):
            raise ValueError(f"the golden tensors are {sorted(item.tensor.name for item in self.goldens)}, and the stages' are {sorted(specs)}")
        size = self.files[GOLDENS].size if GOLDENS in self.files else 0
        for item in self.goldens:
            shape, wanted = item.tensor.shape, specs[item.tensor.name].shape
            if not 0 <= item.offset <= size - _nbytes(item.tensor):
                raise ValueError(f"the golden tensor {item.tensor.name} lies outside {GOLDENS}")
            alike = len(shape) == len(wanted) and all(got == size or isinstance(size, str) for got, size in zip_equal(shape[1:], wanted[1:]))
            if not alike or (shape and shape[0] != 1 and isinstance(wanted[0], int) and shape[0] != wanted[0]):
                raise ValueError(f"the golden tensor {item.tensor.name} has the shape {shape}, wanted {wanted}, or one of its batch")

    @property
    def simulated(self) -> bool:
        """Whether FP16 is rounding inside an FP32 graph: ONNX Runtime has few FP16 kernels for CPUs, and no good ones."""
        return self.backend == "onnxruntime" and self.precision == "fp16" and self.targets != ("cuda",)

    @property
    def computes(self) -> str:
        """The precision of the results: ``fp16-simulated`` where FP32 sums are rounded."""
        return self.precision + ("-simulated" if self.simulated else "")

    def stage_files(self, stage: PlanStage) -> tuple[str, ...]:
        """The engine, and its weights where they are apart."""
        return (stage.engine, stage.weights) if stage.weights else (stage.engine,)


def _nbytes(tensor: TensorSpec) -> int:
    count = DTYPES[tensor.dtype].itemsize
    for size in tensor.shape:
        if not isinstance(size, int):
            raise ValueError(f"the tensor {tensor.name} has a free dimension")
        count *= size
    return count
