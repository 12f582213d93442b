"""The effect of the passes on a trained network, and their cost: `python -m benchmarks.passes [part ...]`.

Parts, each a table in `benchmarks/results/`:

* `accuracy`: V8 trained once; accuracy right after each pass, and after one more epoch;
* `pooling`: a pool inserted into ECToNAS's minimal network, its dense weights aggregated or cut at random;
* `svd`: error of a dense layer shrunk to a rank, naive signs beside signs chosen on data;
* `seconds`: a pass on ResNet-50.
"""

import argparse
from collections.abc import Callable

from benchmarks.passes import accuracy, pooling, seconds, svd

PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "accuracy": lambda options: accuracy.main(options.train, options.epochs),
    "pooling": lambda options: pooling.main(range(options.seeds), options.train),
    "svd": lambda options: svd.main(range(min(options.seeds, 3)), options.train),
    "seconds": lambda options: seconds.main(options.repeats),
}


def main() -> None:
    """Run the requested parts, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=float, help="of training V8; the preset's unless given")
    parser.add_argument("--seeds", type=int, default=10, help="networks of the pooling trial")
    parser.add_argument("--repeats", type=int, default=3, help="of each pass on ResNet-50")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
