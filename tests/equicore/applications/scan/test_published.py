"""The experiment's bars, on a network that is trained as the experiment's are."""

import pytest
import torch

from equicore.applications.scan import (
    encode_commands,
    fit_per_command,
    fit_per_token,
    symmetry,
)
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.zero_shot import answers, measure

BARS = {  # of Add Jump's test accuracies, under the paper's group and under the four verbs
    "jump-run": {"equizero": 0.73, "lambda_sequence": 0.765, "lambda_token": 0.84},
    "verb-cycle": {"equizero": 0.97, "lambda_sequence": 0.995},
}


@pytest.mark.slow
def test_add_jump(tmp_path):
    run = Run(tmp_path, "add_jump", "lstm", 0)
    alone = measure(run, "none").set_index("part").accuracy
    assert alone.validation >= 0.99
    assert alone.test < 0.05
    for group, bars in BARS.items():
        table = measure(run, group)
        found = table[table.part == "test"].set_index("method").accuracy
        for method, bar in bars.items():
            assert found[method] >= bar, (group, method, found[method])
    check_equivariance(run)


def check_equivariance(run):
    """Swapping the words in a command swaps the actions in the output, for every method."""
    network, words = run.network().double(), symmetry("jump-run")
    options = {"steps": 50, "batch_size": 64, "progress": False}
    weights = [
        fit(network.float(), words, run.parts()["train"], **options).double()
        for fit in (fit_per_command, fit_per_token)
    ]
    commands = encode_commands([command for command, _ in run.parts()["test"]][::20])
    with torch.no_grad():
        for name, answer in answers(network.double(), words, *weights).items():
            expected = words.target.act(1, answer(commands))
            assert torch.equal(answer(words.source.act(1, commands)), expected), name
