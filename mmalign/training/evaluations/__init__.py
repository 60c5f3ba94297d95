"""What is measured of a run beside its updates: evaluations, held-out records, diagnostics, and the check before the first update."""
