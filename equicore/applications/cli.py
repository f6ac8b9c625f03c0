"""The command `equicore`: one word for the application, one for what it does."""

from __future__ import annotations

import tyro

import equicore.applications.text.commands as text
from equicore.applications.detection import commands as detection
from equicore.applications.finetuning import commands as finetuning
from equicore.applications.fluids import commands as fluids
from equicore.applications.images import commands as images
from equicore.applications.scan import commands as scan
from equicore.applications.so2 import commands as so2
from equicore.lab.command import numbers, report_errors


def main() -> None:
    """Entry point of the command `equicore`; it ends as `report_errors` says."""

    def dispatch() -> None:
        with numbers:
            tyro.extras.subcommand_cli_from_dict(
                {
                    "detection": detection.run,
                    "finetuning": finetuning.run,
                    "fluids": fluids.run,
                    "images": images.run,
                    "scan": scan.run,
                    "so2": so2.run,
                    "text": text.run,
                },
                prog="equicore",
                description="Applications of equicore: experiments that can be run again.",
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )

    report_errors(dispatch)


if __name__ == "__main__":
    main()
