"""The tests of the kernels for products, convolutions and attention on Intel's OpenCL runtime."""

import pytest
import test_attention
import test_attention_backward
import test_conv
import test_matmul
from kernels_on_opencl import needs_opencl, of_kernels, on_the_device  # noqa: F401

pytestmark = [needs_opencl, pytest.mark.usefixtures("on_the_device")]
globals().update(of_kernels(test_attention, test_attention_backward, test_conv, test_matmul))
