"""Statistics of ``VecNormalize`` from a pickle to a file that holds no code."""

from __future__ import annotations

from equicore.lab.store import check_writable
from equirl.agents.arguments import Convert
from equirl.agents.cli import run
from equirl.normalization import Statistics


def main(arguments: Convert) -> None:
    """Read, write, and say what was found."""
    source = arguments.statistics
    target = arguments.output or source.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise ValueError(f"what is written is a .safetensors file; name {target} so")
    if target.exists():
        raise ValueError(f"{target} exists; delete it, or name another by --output")
    check_writable(target)
    statistics = Statistics.load(source)
    if statistics is None:
        raise ValueError(
            f"{source} normalised rewards only: the agent sees what its environment emits, and "
            "needs no statistics"
        )
    statistics.save(target)
    print(f"{target}: {statistics}")


if __name__ == "__main__":
    run(main, Convert)
