"""The kernels' C interface by ctypes. A call releases the GIL and uses the calling thread alone."""

import ctypes
import hashlib
from ctypes import POINTER, Structure, c_char_p, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("libhmi_kernels.so")
"""The compiled library; ``build_kernels.py`` writes it when the package is installed."""


class Batch(Structure):
    """``hmi::Batch`` of batch.h."""

    _fields_ = (
        ("rows", c_int64),
        ("offsets", c_void_p),
        ("places", c_void_p),
        ("ranks", c_void_p),
        ("own_bias", c_void_p),
        ("widths", c_void_p),
        ("activations", c_void_p),
        ("placements", c_void_p * 2),
        ("broken", c_void_p),
    )


class Matrix(Structure):
    """``hmi::Matrix`` of batch.h."""

    _fields_ = (
        ("kind", c_int64),
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("shrink", c_void_p),
        ("d_in", c_int64),
        ("d_out", c_int64),
    )


class Lora(Structure):
    """``hmi::Lora`` of batch.h."""

    _fields_ = (
        ("matrices", c_int64),
        ("slot_rows", c_int64),
        ("a", c_void_p),
        ("b", c_void_p * 3),
    )


class Bottlenecks(Structure):
    """``hmi::Bottlenecks`` of batch.h."""

    _fields_ = (
        ("slot_width", c_int64),
        ("down", c_void_p),
        ("down_bias", c_void_p),
        ("up", c_void_p),
        ("up_bias", c_void_p),
    )


class Norms(Structure):
    """``hmi::Norms`` of batch.h."""

    _fields_ = (("slots", c_void_p), ("eps", c_float))


class Layer(Structure):
    """``hmi::Layer`` of batch.h."""

    _fields_ = (
        ("matrices", Matrix * 4),
        ("loras", Lora * 4),
        ("norms", Norms * 2),
        ("bottlenecks", Bottlenecks * 2),
        ("heads", c_int64),
        ("activation", c_int64),
    )


def sources_digest() -> str:
    """Return the digest of the C++ sources beside this file, which are installed with it."""
    digest = hashlib.sha256()
    for file in sorted((*FILE.parent.glob("*.cpp"), *FILE.parent.glob("*.h"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def problem() -> str | None:
    """Return why the library cannot be used, as a sentence; None if it can, on a processor that runs it.

    A library of other sources would misread the structures above.
    """
    if not FILE.exists():
        return "The C++ kernels were not compiled when HMI was installed."
    try:
        sources = ctypes.CDLL(str(FILE)).hmi_sources
    except OSError as error:
        return f"The C++ kernels cannot be loaded: {error}."
    except AttributeError:  # it is older than this check
        return "The C++ kernels are of other sources."
    sources.restype = c_char_p
    return None if sources() == sources_digest().encode() else "The C++ kernels are of other sources."


@cache
def load() -> ctypes.CDLL:
    """Return the library with its functions declared. Raises ``OSError`` where there is a ``problem``."""
    found = problem()
    if found is not None:
        raise OSError(found)
    library = ctypes.CDLL(str(FILE))
    functions = {
        "hmi_pack_weight": (c_void_p, c_int64, c_int64, c_void_p),
        "hmi_product": (
            *(POINTER(Batch), POINTER(Matrix), POINTER(Lora)),
            *(c_void_p, c_void_p, c_int64, c_void_p),
        ),
        "hmi_attention": (POINTER(Batch), c_int64, c_void_p, c_int64, c_int64, c_void_p),
        "hmi_norm": (POINTER(Batch), c_int64, POINTER(Norms), c_void_p, c_int64, c_void_p),
        "hmi_layers": (POINTER(Batch), POINTER(Layer), c_int64, c_int64, c_void_p),
    }
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
