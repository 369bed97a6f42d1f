"A minimal writer of ONNX files, without the package `onnx`: nodes, constants and shapes as protocol buffers."

import struct

import numpy as np


def varint(n):
    out = b""
    while True:
        n, low = n >> 7, n & 127
        out += bytes([low | (128 if n else 0)])
        if not n:
            return out


def field(number, value):
    "One field: an int as a varint, text and bytes with their length."
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def constant(name, array):
    kind = {"float32": 1, "int64": 7}[str(array.dtype)]
    dims = b"".join(field(1, n) for n in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, np.ascontiguousarray(array).tobytes())


def value(name, shape, kind=1):
    "A named tensor; a text in the shape is a size that is left open."
    dims = b"".join(field(1, field(2, n) if isinstance(n, str) else field(1, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def write_onnx(path, *, nodes, constants, inputs, outputs, opset=17):
    """Write a model. `nodes`: (operation, inputs, outputs); `constants`: name -> array; `inputs` and `outputs`: name ->
    shape, or (shape, number of the type)."""
    graph = b"".join(
        field(1, b"".join(field(1, i) for i in ins) + b"".join(field(2, o) for o in outs) + field(4, kind))
        for kind, ins, outs in nodes
    )
    graph += field(2, "graph") + b"".join(field(5, constant(k, v)) for k, v in constants.items())
    for number, values in ((11, inputs), (12, outputs)):
        for name, shape in values.items():
            shape = shape if isinstance(shape[0], (tuple, list)) else (shape, 1)
            graph += field(number, value(name, *shape))
    model = field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, opset))
    path.write_bytes(model)
    return path


assert struct.pack("<f", 1.0) == np.float32(1).tobytes()  # ONNX stores little-endian numbers
