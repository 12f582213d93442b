"""ECToNAS against its controls and beside the paper: `python -m benchmarks.ectonas PART`.

Parts, each a table or two in `benchmarks/results/`; each prints an estimate of its time first, and resumes where it was
interrupted, inside a search too (delete `benchmarks/runs/` to start over). `PART --help` lists its options.

* `ecto6`: the six start nets on Fashion-MNIST, greedy, alpha 0.5, alpha 0, random, and trained plainly;
* `crossing`: the same on tabular data made to look like images: who drops its convolutions, who gains some;
* `r20`: from a trained ResNet-20, with and without a budget, against pruning and longer training;
* `throughput`: two processes, or Ray, against one, with equal results;
* `memory`: a generation of children before any of them trains, against deep copies.
"""

import argparse

from benchmarks.ectonas import crossing, ecto6, memory, nets, resnet, throughput
from benchmarks.ectonas.tabular import TRAIN_ROWS


def main() -> None:
    """Run the requested part."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ectonas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    six = parts.add_parser("ecto6", help="the six start nets on Fashion-MNIST")
    nets.add_options(six, samples=60_000, seeds=[0])
    six.set_defaults(main=ecto6.main)
    tabular = parts.add_parser("crossing", help="the six start nets on tabular data")
    nets.add_options(tabular, samples=TRAIN_ROWS, seeds=[0, 1, 2])
    tabular.set_defaults(main=crossing.main)
    for name, module in {"r20": resnet, "throughput": throughput, "memory": memory}.items():
        part = parts.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_options(part)
        part.set_defaults(main=module.main)
    options = parser.parse_args()
    options.main(options)


if __name__ == "__main__":
    main()
