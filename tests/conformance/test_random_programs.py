"""Random chains of passes on random graphs, the same ones on every machine.

A case that fails is printed as a call of `check`: it goes into `test_counterexamples.py`, and stays there. Other seeds
are for whoever changes a pass: `random_chains.py` tells how.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("seed", "chains"), [(0, 50), pytest.param(1, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_random_chains_keep_every_promise(seed: int, chains: int):
    done = subprocess.run(
        [sys.executable, "-m", "conformance.random_chains", "--seed", str(seed), "--chains", str(chains)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    graphs, _, passes, _ = done.stdout.split()
    assert int(graphs) >= chains
    assert int(passes) > chains
