"""What is read of a file of latents before anything of it is believed."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from streamvae.live._headers import (
    MAX_NPY_HEADER,
    MAX_SAFETENSORS_HEADER,
    LatentsHeader,
    header_bound,
    parse_header,
)
from streamvae.live._problems import Problem


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    """A file as numpy writes it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def npy_of(header: str, version: int = 1) -> bytes:
    """A file of that header."""
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H", len(text)) + text


def tensors(header: object, data: bytes = b"") -> bytes:
    """A .safetensors file of that header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changed: object) -> dict[str, object]:
    """A tensor's entry in a header."""
    return {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [0, 4], **changed}


def refused(head: bytes) -> Problem:
    """What a file is refused with."""
    with pytest.raises(Problem) as caught:
        parse_header(head, complete=True)
    return caught.value


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "=f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_as_numpy_writes_it(version: tuple[int, int], dtype: str, order: str) -> None:
    """Every version, byte order and layout that numpy writes of floats is read, to the byte."""
    array = np.zeros((1, 4, 3, 2, 5), dtype, order=order)
    file = npy(array, version)
    header = parse_header(file, complete=True)
    dtypes = {2: torch.float16, 4: torch.float32, 8: torch.float64}
    assert header == LatentsHeader("npy", array.shape, dtypes[array.itemsize], len(file))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_as_the_library_writes_it(dtype: torch.dtype) -> None:
    """One tensor of floats, or one named latents among others, is read, to the byte."""
    latents = torch.zeros(1, 4, 3, 2, 5, dtype=dtype)
    for held in ({"z": latents}, {"latents": latents, "mask": torch.zeros(3, dtype=torch.bool)}):
        file = save(held, {"fps": "24.0"})
        header = parse_header(file, complete=True)
        assert header == LatentsHeader("safetensors", (1, 4, 3, 2, 5), dtype, len(file), 24.0)


@pytest.mark.parametrize("length", [0x80, 0x0480, 0x8B1F])
def test_a_length_that_looks_like_another_file(length: int) -> None:
    """A safetensors header whose length begins as a pickle or gzip does is read all the same."""
    file = save({"z": torch.zeros(1, 1, 1)})
    text = file[8 : 8 + int.from_bytes(file[:8], "little")].ljust(length)
    header = parse_header(struct.pack("<Q", length) + text + bytes(4), complete=True)
    assert header is not None
    assert header.size == 8 + length + 4


@pytest.mark.parametrize("fps", ["0", "-3", "nan", "1e9", "many", "9" * 50, ""])
def test_a_rate_that_is_none_is_ignored(fps: str) -> None:
    """Metadata are anybody's: a rate that cannot be one is not taken."""
    header = parse_header(save({"z": torch.zeros(1, 1, 1)}, {"fps": fps}), complete=True)
    assert header is not None
    assert header.fps is None


def test_a_beginning_is_not_yet_a_verdict() -> None:
    """Any beginning of a good file asks for more, and a file that ends there is refused."""
    for file in (npy(np.zeros((1, 2, 3), np.float32)), save({"z": torch.zeros(1, 2, 3)})):
        whole = parse_header(file, complete=True)
        assert whole is not None
        start = file.index(b"\n") + 1 if file[:1] == b"\x93" else len(file) - 24
        for end in range(start):
            assert parse_header(file[:end], complete=False) is None
            assert refused(file[:end]).status == 400
        assert parse_header(file[:start], complete=False) == whole


@pytest.mark.parametrize(
    ("file", "status", "said"),
    [
        (b"PK\x03\x04" + bytes(40), 415, "zip"),
        (b"\x80\x04\x95" + bytes(40), 415, "pickle"),
        (b"\x1f\x8b" + bytes(40), 415, "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), 415, "HDF5"),
        (b"<html>" + bytes(40), 415, "something else"),
        (bytes(40), 415, "something else"),
        (b"", 400, "nothing"),
        (b"\x93NUMPY\x09\x00" + bytes(40), 415, "version 1, 2 or 3"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(40), 413, "at most"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", MAX_NPY_HEADER + 1) + bytes(9), 413, "at most"),
        (npy_of("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }"), 422, "'|O'"),
        (npy_of("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2), }"), 422, "'<i4'"),
        (npy_of("{'descr': '<c8', 'fortran_order': False, 'shape': (1, 2), }"), 422, "'<c8'"),
        (npy_of("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}"), 400, "array"),
        (npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': ()}"), 422, "dimensions"),
        (npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1, -2)}"), 400, "npy"),
        (npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (,1)}"), 400, "shape"),
        (npy_of("{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 2)}"), 400, "npy"),
        (npy_of("{'descr': '<f4', 'descr': '<f4', 'shape': (1, 2)}"), 400, "once"),
        (npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}"), 422, "whole"),
        (
            npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 900 + ",)}"),
            400,
            "",
        ),
        (npy_of("__import__('os').system('true')"), 400, "npy"),
        (npy_of("(" * 9000), 400, "npy"),
        (struct.pack("<Q", 1 << 40) + b"{" + bytes(20), 413, "at most"),
        (struct.pack("<Q", MAX_SAFETENSORS_HEADER + 1) + b"{" + bytes(20), 413, "at most"),
        (tensors(b"{" + b'"a":{' * 5000), 400, "JSON"),
        (tensors(b'{"a": ' + b"[" * 100_000 + b"}"), 400, "JSON"),
        (tensors(b'{"a": 1' + b"0" * 6000 + b"}"), 400, "JSON"),
        (tensors(b'{"a": \xff}'), 400, "JSON"),
        (tensors(b'{"z": {}, "z": {}}'), 400, "JSON"),
        (tensors({}), 422, "none"),
        (tensors({"a": entry(), "b": entry(data_offsets=[4, 8])}), 422, "a, b"),
        (tensors({"a": []}), 400, "dtype, shape"),
        (tensors({"a": entry(dtype=4)}), 400, "dtype, shape"),
        (tensors({"a": entry(data_offsets=[0, "4"])}), 400, "dtype, shape"),
        (tensors({"a": entry(data_offsets=[-4, 0])}), 400, "dtype, shape"),
        (tensors({"a": entry(data_offsets=[4, 0])}), 400, "in order"),
        (tensors({"a": entry(data_offsets=[4, 8])}), 400, "begins at byte 0"),
        (tensors({"a": entry(data_offsets=[0, 8])}), 400, "4 bytes"),
        (tensors({"a": entry(shape=[1 << 40, 1, 1])}), 422, "whole numbers"),
        (tensors({"a": entry(shape=[1.5, 1, 1])}), 422, "whole numbers"),
        (tensors({"a": entry(shape=[True, 1, 1])}), 422, "whole numbers"),
        (tensors({"a": entry(shape=[1] * 9)}), 422, "dimensions"),
        (tensors({"a": entry(dtype="I64", data_offsets=[0, 8])}), 422, "'I64'"),
        (tensors({"a": entry(dtype="F8_E4M3")}), 422, "'F8_E4M3'"),
        (
            tensors({"latents": entry(), "b": entry(data_offsets=[2, 6])}),
            400,
            "begins at byte 4",
        ),
    ],
)
def test_hostile_files_are_refused(file: bytes, status: int, said: str) -> None:
    """A bomb, a pickle, a wrong dtype or a lie is refused with its status and one clear message."""
    problem = refused(file)
    assert problem.status == status
    assert said in problem.detail
    assert len(problem.detail) < 400
    assert "\n" not in problem.detail


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.booleans(), st.integers(0, 2))
def test_noise_is_refused_or_read(noise: bytes, complete: bool, start: int) -> None:
    """Whatever the bytes are, the answer is a header, a wish for more, or the client's problem."""
    prefix = (b"", b"\x93NUMPY\x01\x00", struct.pack("<Q", max(0, len(noise) - 3)) + b"{")[start]
    caught: Problem | None = None
    try:
        parse_header(prefix + noise, complete=complete)
    except Problem as problem:
        caught = problem
    assert caught is None or caught.status in {400, 413, 415, 422}


def test_no_more_than_the_bound_is_ever_needed() -> None:
    """What is longer than the bound without a verdict cannot be."""
    for file in (struct.pack("<Q", MAX_SAFETENSORS_HEADER) + b"{", b"\x93NUMPY\x01\x00\x10\x27"):
        padded = file + b" " * (header_bound() - len(file))
        assert refused(padded).status == 400
