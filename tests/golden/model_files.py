"""Model folders to be changed in tests: config.json as a dictionary, safetensors files as headers and bytes.

Reads and writes safetensors by hand, since the tests need files that no library would write.
"""

import io
import json
import pathlib
import struct
import zipfile

import numpy as np


def read_tensors(path):
    """{name: (dtype, shape, bytes)} of a file, in the order of the data."""
    raw = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in entries
    }


def header_of(tensors):
    """The header that lays the tensors one behind the other."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return header


def write_raw(path, header, data, length=None):
    """A file of a header (a dictionary, or bytes as they are) and data; `length`: what its first 8 bytes say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text)
        file.write(data)


def write_tensors(path, tensors):
    write_raw(path, header_of(tensors), b"".join(data for _, _, data in tensors.values()))


def write_npz(path, arrays):
    """As numpy.savez_compressed, but with fixed times, so that the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays.items():
            npy = io.BytesIO()
            np.lib.format.write_array(npy, np.asarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, npy.getvalue())


class ModelCopy:
    """A model folder that a test may change. Goes wherever a path goes."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.weights = self.path / "model.safetensors"

    def __fspath__(self):
        return str(self.path)

    __str__ = __fspath__

    def __truediv__(self, name):
        return self.path / name

    def edit_json(self, name, changes, drop=()):
        """Sets the members of `changes` in a file and removes those of `drop`."""
        file = self.path / name
        value = json.loads(file.read_text()) | changes
        for key in drop:
            value.pop(key, None)
        file.write_text(json.dumps(value))

    def config(self, drop=(), **changes):
        self.edit_json("config.json", changes, drop)

    def tensors(self):
        return read_tensors(self.weights)

    def set_tensors(self, tensors):
        write_tensors(self.weights, tensors)

    def edit_header(self, change):
        """change(header) edits the entries of the weights' header; the data stays."""
        tensors = self.tensors()
        header = header_of(tensors)
        change(header)
        write_raw(self.weights, header, b"".join(data for _, _, data in tensors.values()))

    def shard(self, count=2, index=True):
        """Spreads the tensors over files in turn, with an index; gives the index."""
        tensors = self.tensors()
        self.weights.unlink()
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        weight_map = {}
        for i, file in enumerate(names):
            part = {name: tensor for j, (name, tensor) in enumerate(tensors.items()) if j % count == i}
            weight_map |= dict.fromkeys(part, file)
            write_tensors(self.path / file, part)
        total = sum(len(data) for _, _, data in tensors.values())
        value = {"metadata": {"total_size": total}, "weight_map": weight_map}
        if index:
            self.set_index(value)
        return value

    def set_index(self, value):
        (self.path / "model.safetensors.index.json").write_text(json.dumps(value))
