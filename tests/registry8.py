"""Run by a Python that has TensorRT 8 and no GPU: the real plugin registry takes our library, and its creators take what the ONNX parser hands over.

    python registry8.py LIBRARY NODES.json

``NODES`` is what the graphs hold: operator, name, attributes with their ONNX types (1 FLOAT, 2 INT). What is done with them is what onnx-tensorrt
8.5 and 8.6 publish: of the fields that a creator names, those that the node has become ``PluginField`` s of length 1 with the attribute's type.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import tensorrt as trt

from fathom.runtime.errors import EnvironmentMismatchError
from fathom.runtime.tensorrt.operators.plugins import load_plugins, read_library

OPERATORS = ["BinsExpectation", "CrossAttention", "GroupNormSilu"]
KINDS = {1: (np.float32, trt.PluginFieldType.FLOAT32), 2: (np.int32, trt.PluginFieldType.INT32)}


def ours():
    return sorted(creator.name for creator in trt.get_plugin_registry().plugin_creator_list if creator.name in OPERATORS)


def collection(creator, attributes):
    kept, values = [], []
    for field in creator.field_names:
        if field.name in attributes:
            kind, value = attributes[field.name]
            values.append(np.array([value], KINDS[kind][0]))
            kept.append(trt.PluginField(field.name, values[-1], KINDS[kind][1]))
    return trt.PluginFieldCollection(kept), values


def main(path, nodes):
    library = read_library(path)
    assert ours() == []
    first, second = (load_plugins(trt, path, library) for _ in range(2))
    assert ours() == OPERATORS
    made = {}
    for node in nodes:
        creator = trt.get_plugin_registry().get_plugin_creator(node["operator"], "1", "")
        assert creator is not None and creator.name == node["operator"]
        fields, values = collection(creator, node["attributes"])
        plugin = creator.create_plugin(node["name"], fields)
        assert plugin is not None and plugin.plugin_type == node["operator"] and plugin.num_outputs == node["outputs"], node
        kept = bytes(plugin.serialize())
        again = creator.deserialize_plugin(node["name"], kept)
        assert again is not None and bytes(again.serialize()) == kept and bytes(again.clone().serialize()) == kept
        defaults = dict(node["defaults"])
        words = [np.array(node["attributes"].get(f.name, (0, defaults[f.name]))[1], KINDS[defaults_kind(f)][0]).tobytes() for f in creator.field_names]
        assert kept == b"".join(words), (node, kept)
        assert creator.deserialize_plugin("short", kept[:-1]) is None
        other = {name: (3 - kind, value) for name, (kind, value) in node["attributes"].items()}
        assert not other or creator.create_plugin("other type", collection(creator, other)[0]) is None
        made[node["operator"]] = made.get(node["operator"], 0) + 1
        del plugin, again, values
    del creator
    gc.collect()
    first.close()
    first.close()
    assert ours() == OPERATORS
    try:
        load_plugins(trt, path, type(library)(library.file, "0" * 64, library.tensorrt))
        raise AssertionError("a second library was taken")
    except EnvironmentMismatchError:
        pass
    second.close()
    assert ours() == []
    load_plugins(trt, path, library).close()
    assert ours() == []
    print(trt.__version__, json.dumps(made, sort_keys=True))


def defaults_kind(field):
    return 2 if field.type == trt.PluginFieldType.INT32 else 1


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), json.loads(Path(sys.argv[2]).read_text()))
