"""Asks this processor whether its products of uint8 by int8 are exact, by computing one that gives it away.

x86 before VNNI multiplies bytes in pairs and adds each pair in 16 bits, where 2 x 255 x 127 does not fit: the
sum is cut off without a word. onnxruntime's precise mode avoids it there, and costs a factor of three where
VNNI makes the plain mode exact already: it should be on in the first case and off in the second. The
arithmetic is asked, not the name of the processor, because emulators, virtual machines and builds of
onnxruntime may hide or ignore what the processor has.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime

from torchless.errors import ProviderError

PRECISE_MODE = "session.x64quantprecision"  # onnxruntime then keeps signed weights as unsigned ones

# y[M,60] = (a[M,64] - 128) w, each row of w being 68, 69, ..., 127: Expand (folded at load) and
# MatMulIntegerToFloat, with the weights' zero: for one without, the precise mode of onnxruntime before 1.25 reads
# past its inputs and ends the process. In bytes, as the runtime has no onnx; tests/test_exactness.py builds it.
_PROBE = (
    b'\x08\n:\x98\x02\n\x17\n\x03row\n\x05shape\x12\x01w"\x06Expand\nD'
    b"\n\x01a\n\x01w\n\x03one\n\x03one\n\x04zero\n\x04none"
    b'\x12\x01y"\x14MatMulIntegerToFloat:\rcom.microsoft\x12\x05probe*I\x08\x01\x08<\x10\x03B\x03rowJ<'
    b"DEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~\x7f"
    b'*\x0f\x08\x02\x10\x07:\x02@<B\x05shape*\r\x10\x01"\x04\x00\x00\x80?B\x03one'
    b"*\x0c\x10\x02*\x02\x80\x01B\x04zero*\x0b\x10\x03*\x01\x00B\x04none"
    b"Z\x14\n\x01a\x12\x0f\n\r\x08\x02\x12\t\n\x03\x12\x01M\n\x02\x08@"
    b"b\x14\n\x01y\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01M\n\x02\x08<"
    b"B\x04\n\x00\x10\x14B\x11\n\rcom.microsoft\x10\x01"
)
_TERMS, _WEIGHTS = 64, np.arange(68, 128)
# One row, few and many take different kernels; 33 rows of 60 columns meet AMX's, wrong until onnxruntime 1.25.
_ROWS = (1, 2, 17, 33)


@functools.cache
def signed_int8_saturates() -> bool:
    """True where int8 weights need PRECISE_MODE to be exact. A few milliseconds once, then free.

    Raises ProviderError where that mode is not exact either.
    """
    if products_are_exact(precise=False):
        return False
    if products_are_exact(precise=True):
        return True
    raise ProviderError(
        f"onnxruntime {onnxruntime.__version__} multiplies int8 wrongly on this processor: upgrade it to 1.25 "
        "(which needs Python 3.11), or use the float32 bundle or one of the recipe int4"
    )


def products_are_exact(*, precise: bool) -> bool:
    """Whether products of the largest activations and weights up to the largest come out right."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry(PRECISE_MODE, "1" if precise else "0")
    session = onnxruntime.InferenceSession(_PROBE, options, providers=["CPUExecutionProvider"])
    exact = (255 - 128) * _TERMS * _WEIGHTS  # below 2**24, so float32 holds it
    return all(
        np.array_equal(session.run(None, {"a": np.full((rows, _TERMS), 255, np.uint8)})[0], [exact] * rows)
        for rows in _ROWS
    )
