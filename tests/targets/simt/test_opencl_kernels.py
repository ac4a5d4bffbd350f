"""The tests of the kernels for transforms, linear algebra, scans, scatters and sorting on Intel's OpenCL runtime."""

import pytest
import test_fft
import test_linalg
import test_scan
import test_scatter
import test_sort
from kernels_on_opencl import needs_opencl, of_kernels, on_the_device  # noqa: F401

pytestmark = [needs_opencl, pytest.mark.usefixtures("on_the_device")]
globals().update(of_kernels(test_fft, test_linalg, test_scan, test_scatter, test_sort))
