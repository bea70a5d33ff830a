from composable_energy.diagnostics.summary import Summary as Summary
from composable_energy.diagnostics.warnings import Row as Row
