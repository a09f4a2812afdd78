"""Every TensorRT name that the runtime uses, and the devices that users name."""

import json
from pathlib import Path

import pytest

from fathom.runtime.backend import parse_device
from fathom.runtime.errors import UsageError

DUMPS = Path(__file__).parent / "data" / "trt_api"


@pytest.mark.parametrize("release", ["8_5", "8_6", "10_3", "10_16", "11_4", "rtx"])
def test_every_name_that_is_used_exists_in_the_real_packages(release):
    """What the runtime asks of TensorRT, looked up in dumps of the real packages' APIs."""
    api = json.loads((DUMPS / f"api_{release}.json").read_text())
    wanted = {
        "ILogger": {"INTERNAL_ERROR", "ERROR", "WARNING"},
        "Runtime": {"deserialize_cuda_engine"},
        "ICudaEngine": {
            *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape", "get_tensor_location"),
            "get_tensor_profile_shape",
        },
        "IExecutionContext": {"set_input_shape", "infer_shapes", "get_tensor_shape", "set_tensor_address", "execute_async_v3", "profiler"},
        "IProfiler": {"report_layer_time"},
        "TensorIOMode": {"INPUT", "OUTPUT"},
        "TensorLocation": {"DEVICE"},
        "DataType": {"FLOAT", "HALF", "INT32", "UINT8", "BOOL"},
        "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH" if release in ("8_5", "8_6") else "STRONGLY_TYPED"},
    }
    if release != "rtx":  # what plugins want
        wanted["IPluginRegistry"] = set() if release == "8_5" else {"load_library", "deregister_library"}
        assert release != "8_5" or "load_library" not in api["IPluginRegistry"]["members"]  # why it is done by hand there
    if release in ("8_5", "8_6"):  # what its adapter uses, and why it has one of its own
        wanted["ICudaEngine"] |= {"device_memory_size", "create_execution_context_without_device_memory"}
        wanted["IExecutionContext"] |= {"device_memory"}
        assert not {"ExecutionContextAllocationStrategy", "IProgressMonitor", "OnnxParserFlag"} & set(api)
        assert "device_memory_size_v2" not in api["ICudaEngine"]["members"] and "set_device_memory" not in api["IExecutionContext"]["members"]
    else:
        wanted["ICudaEngine"] |= {"device_memory_size_v2", "create_execution_context"}
        wanted["IExecutionContext"] |= {"set_device_memory"}
        wanted["ExecutionContextAllocationStrategy"] = {"USER_MANAGED"}
        wanted["DataType"] |= {"INT64"}
    if release == "rtx":
        wanted |= {
            "CudaGraphStrategy": {"WHOLE_GRAPH_CAPTURE", "DISABLED"},
            "EngineValidity": {"INVALID"},
            "ComputeCapability": {"SM86"},
            "IRuntimeCache": {"serialize", "deserialize"},
            "IRuntimeConfig": {"create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy", "set_execution_context_allocation_strategy"},
        }
        wanted["Runtime"] |= {"get_engine_validity", "engine_header_size"}
        wanted["ICudaEngine"] |= {"create_runtime_config"}
        wanted["IExecutionContext"] |= {"is_stream_capturable"}
    else:
        assert not set(api) & {"CudaGraphStrategy", "IRuntimeCache", "EngineValidity"}  # what tells the two packages apart
        assert "is_stream_capturable" not in api["IExecutionContext"]["members"]
    for kind, names in wanted.items():
        assert names <= set(api[kind]["members"]), (kind, names - set(api[kind]["members"]))


@pytest.mark.parametrize(
    ("device", "kind", "index"), [(None, None, 0), ("cpu", "cpu", 0), ("cuda", "cuda", 0), ("cuda:2", "cuda", 2), (0, "cuda", 0), (3, "cuda", 3)]
)
def test_devices_by_name_and_number(device, kind, index):
    assert parse_device(device) == (kind, index)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cpu:0", -1, "cuda:1:2"])
def test_wrong_devices(device):
    with pytest.raises(UsageError, match="no device"):
        parse_device(device)
