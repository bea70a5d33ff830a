"""The kit that checks kernels."""

import pytest

from composable_energy.testing import SkipCheck
from composable_energy_triton.testing import check_kernel, kernel_checks
from tests.recorded_kernel import Recorded


@pytest.mark.slow
def test_the_kit_passes_the_reference_and_catches_what_is_wrong():
    class Wrong(Recorded):
        def __init__(self, **changed):
            super().__init__()
            self.changed = changed

        def langevin_step(self, x, gradient, momentum, numbers, counter, out, out_momentum):
            numbers = numbers._replace(**{k: v for k, v in self.changed.items() if k in numbers._fields})
            if self.changed.get("chain"):
                counter = counter._replace(chain=0)
            if self.changed.get("spill"):
                out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(0.0)
            if self.changed.get("greedy"):
                x.add_(1.0)
            if self.changed.get("hide"):
                x = x.nan_to_num(0.0)
            super().langevin_step(x, gradient, momentum, numbers, counter, out, out_momentum)

    shapes = [(3, 2), (5,), (2, 7)]
    check_kernel(Recorded(), shapes=shapes)
    for faults, caught in (
        ({"drift": 0.0}, {"step"}),
        ({"low": None}, {"step"}),
        ({"scale": 2**0.5}, {"noise"}),
        ({"move": 0.0}, {"momentum"}),
        ({"chain": True}, {"noise"}),
        ({"spill": True}, {"bounds"}),
        ({"greedy": True}, {"inputs", "chains"}),
        ({"hide": True}, {"nan"}),
    ):
        failed = set()
        for check in kernel_checks(Wrong(**faults), shapes=shapes):
            try:
                check()
            except AssertionError:
                failed.add(check.name)
            except SkipCheck:
                continue
        assert caught <= failed, faults
