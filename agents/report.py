"""The page of a comparison: one file that answers whether symmetry helps an agent."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import equirl
from equicore.lab.figures import error_bars
from equicore.lab.store import write_text
from equicore.lab.tables import frame_markdown
from equirl.agents.plot import STYLES, Style
from equirl.agents.verdicts import RANDOM
from equirl.agents.video import FILM, Videos

if TYPE_CHECKING:
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]

    from equirl.agents.compare import Findings

MOST_POINTS = 5_000  # of a figure, so that it answers to the mouse in time
LOOKS = {**STYLES, RANDOM: Style("random actions", "#ffffff", "x", ":", stroke="#b0b0b0")}
HOVER = "<b>%{customdata[0]}</b>, %{customdata[1]}<br>%{customdata[2]}<extra></extra>"

MEANINGS = (
    "plain: the agent as it is; random: actions that are drawn at random, for comparison",
    "equitune: the mean of the agent's answers to all symmetric views of a state",
    "equizero: the agent's answer to the view in which it promises most",
    "lambda (λ-equitune): a mean with learned weights",
    "raw: without normalising the agent's values first; selected: what --select chose",
    "original: the environment as it is; transformed: each episode is seen through a random "
    "element of the symmetry's group",
)

STYLE = """
:root { color-scheme: light; }
body { max-width: 60em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 system-ui, sans-serif;
  color: #222; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.7em; line-height: 1.2; } h2 { font-size: 1.25em; margin-top: 2em; }
.verdict, .warning { padding: .6em .9em; border-left: 4px solid #e69f00; background: #fdf3e1; }
.verdict { font-size: 1.2em; border-color: #0072b2; background: #eef5fb; }
.wide { overflow-x: auto; width: max-content; max-width: calc(100vw - 3em); position: relative;
  left: 50%; transform: translateX(-50%); } table { border-collapse: collapse; font-size: .85em; }
th, td { padding: .25em .7em; text-align: left; white-space: nowrap; }
td { border-top: 1px solid #ddd; font-variant-numeric: tabular-nums; }
figure { margin: 1.5em 0; } figcaption { font-size: .9em; color: #555; }
.videos { display: flex; flex-wrap: wrap; gap: 1em; } .videos img { border: 1px solid #ddd; }
pre { padding: .7em; background: #f4f4f4; white-space: pre-wrap; }
"""


def write_report(
    folder: Path,
    returns: pd.DataFrame,
    summary: pd.DataFrame,
    findings: Findings,
    videos: Videos,
    seed: int,
    played: str,
    command: str,
) -> None:
    """Write report.html, which needs no other file and no network.

    Args:
        folder: Where to.
        returns: What `equirl.agents.compare.compare` returns.
        summary: What `equirl.agents.compare.summarize` returns.
        findings: What the comparison says.
        videos: What `equirl.agents.video.film` returns.
        seed: Of the first episode.
        played: How much was played, and what the intervals are.
        command: The command line that gives these results.
    """
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    agents = returns.agent.nunique()
    title = f"Does symmetry help {'this agent' if agents == 1 else f'these {agents} agents'}?"
    cautions = [*findings.cautions, *findings.checks]
    body = [
        f"<h1>{title}</h1>",
        *(f'<p class="verdict">{escape(line)}.</p>' for line in findings.advice),
        *(f"<p{' class=warning' * ('WARNING' in c)}>{escape(c)}.</p>" for c in cautions),
        "<h2>What was found</h2>",
        _list([*findings.verdicts, *findings.chosen]),
        _table(summary),
        "<noscript><p>The figures need JavaScript; the table has their numbers.</p></noscript>",
    ]
    last = returns[returns.budget == returns.groupby(["env", "agent"]).budget.transform("max")]
    for i, (env, budget) in enumerate(dict.fromkeys(zip(last.env, last.budget, strict=True))):
        rows = returns[(returns.env == env) & (returns.budget == budget)]
        cells = summary[(summary.environment == env) & (summary.steps == budget)]
        body.append(f"<h2>{escape(env)}, {budget:,} training steps</h2>")
        body += _figures(rows, cells, seed, f"figure{i}")
    for env, of_env in videos.items():
        body += [f"<h2>{escape(env)}: videos</h2>", *_videos(of_env, seed)]
    body += [
        "<h2>How to read this</h2>",
        _list(MEANINGS),
        f"<p>{escape(played)}</p>",
        f"<p>equirl {equirl.__version__}. In the folder of the agents this command gives the same "
        f"results again:</p>\n<pre><code>{escape(command)}</code></pre>",
    ]
    head = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>",
        "</head>\n<body>",
    ]
    write_text(folder / "report.html", "\n".join([*head, *body, "</body>\n</html>\n"]))


def _list(lines: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def _table(summary: pd.DataFrame) -> str:
    """The table of table.md, cell by cell."""
    columns = [frame_markdown(summary[[name]]).split("\n")[2:] for name in summary]
    rows = [
        "<tr>" + "".join(f"<td>{escape(cell[2:-2])}</td>" for cell in row) + "</tr>"
        for row in zip(*columns, strict=True)
    ]
    head = "".join(f"<th>{escape(str(name))}</th>" for name in summary)
    return "\n".join(['<div class="wide"><table>', f"<tr>{head}</tr>", *rows, "</table></div>"])


def _figures(rows: pd.DataFrame, cells: pd.DataFrame, seed: int, name: str) -> Iterable[str]:
    """The three figures of an environment and budget, each with its caption."""
    from plotly.graph_objects import Figure

    agents, episodes = rows.agent.nunique(), rows.episode.nunique()
    played = f"{agents} {'agent' if agents == 1 else 'agents'}, {episodes} episodes each"
    method = "a bootstrap over agents and episodes" if agents > 1 else "Student's t over episodes"
    bars = f"Error bars: 95 % intervals, by {method}."
    few = len(rows) <= MOST_POINTS
    points = "Each point is an episode" if few else "Only outliers are drawn as points"
    captions = (
        f"Mean return per episode; higher is better. {bars} Where returns are negative, bars do "
        "not begin at 0. A click on a name above hides or shows it; random actions are hidden.",
        "Mean difference to plain in the same episodes; right of 0 is better than plain. "
        f"{bars} Where an interval holds 0, no clear difference was found.",
        f"Returns of the episodes. {points}; a box holds the middle half of them.",
    )
    figures = [Figure() for _ in captions]
    _means(figures[0], cells, played)
    _differences(figures[1], cells, played)
    _episodes(figures[2], rows, seed, few)
    for i, (figure, caption) in enumerate(zip(figures, captions, strict=True)):
        figure.update_layout(
            template="simple_white",
            font={"family": "system-ui, sans-serif", "size": 13},
            margin={"l": 70, "r": 20, "t": 20, "b": 50},
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            hovermode="closest",
        )
        drawing = figure.to_html(
            {"displayModeBar": False, "responsive": True},
            include_plotlyjs=False,
            full_html=False,
            default_height="360px",
            div_id=f"{name}-{i}",
        )
        yield f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _means(figure: Figure, cells: pd.DataFrame, played: str) -> None:
    """Bars of the mean return; where some are negative, all begin below the lowest."""
    ends = [(e.low, e.high) for e in cells["mean return"][cells.policy != RANDOM]]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    floor = 0.0 if lowest >= 0 else lowest - 0.08 * (highest - lowest)
    for policy, own in cells.groupby("policy", sort=False):
        look = LOOKS[str(policy)]
        figure.add_bar(
            name=look.label,
            visible=_visible(policy),
            x=list(own.condition),
            y=[e.value - floor for e in own["mean return"]],
            base=floor,
            error_y=_intervals(own["mean return"]),
            marker={"color": look.fill, "line": {"color": "#000", "width": 1}},
            customdata=_told(own, "mean return", played),
            hovertemplate=HOVER,
        )
    figure.update_yaxes(title="mean return")


def _differences(figure: Figure, cells: pd.DataFrame, played: str) -> None:
    """A point for each policy and condition: how it differs from plain."""
    compared = cells[~cells.policy.isin(["plain", RANDOM])]
    for policy, own in compared.groupby("policy", sort=False):
        look = LOOKS[str(policy)]
        figure.add_scatter(
            x=[e.value for e in own["minus plain"]],
            y=[f"{look.label}, {condition}" for condition in own.condition],
            mode="markers",
            error_x=_intervals(own["minus plain"]),
            marker={"size": 11, "color": look.fill, "line": {"color": "#000", "width": 1}},
            customdata=_told(own, "minus plain", played),
            hovertemplate=HOVER,
        )
    figure.update_xaxes(title="return minus plain", rangemode="tozero", zeroline=True)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(showlegend=False)


def _visible(policy: Any) -> bool | str:
    """Whether a policy is drawn at once; random actions could make all others look the same."""
    return "legendonly" if policy == RANDOM else True


def _intervals(estimates: Iterable[Any]) -> dict[str, Any]:
    below, above = error_bars([*estimates])
    return {"type": "data", "array": above, "arrayminus": below, "color": "#7f7f7f"}


def _told(own: pd.DataFrame, column: str, played: str) -> list[list[str]]:
    """What the mouse is told of a policy in each condition."""
    told = []
    for policy, condition, estimate in zip(own.policy, own.condition, own[column], strict=True):
        value, _, interval = str(estimate).partition(" ")
        numbers = f"{column} {value}<br>95 % interval {interval}<br>{played}"
        told.append([LOOKS[policy].label, condition, numbers])
    return told


def _episodes(figure: Figure, rows: pd.DataFrame, seed: int, few: bool) -> None:
    """A box of the episodes' returns for each policy and condition, maybe with all as points."""
    for policy, own in rows.groupby("policy", sort=False):
        look = LOOKS[str(policy)]
        colour = look.stroke or look.fill
        played = zip(own.episode_return, own.episode, own.agent, strict=True)
        told = (  # escaped, as figures read some HTML, too
            f"return {value:g}<br>episode {i}, seed {seed + i}<br>{escape(str(agent))}"
            for value, i, agent in played
        )
        figure.add_box(
            name=look.label,
            visible=_visible(policy),
            x=list(own.condition),
            y=list(own.episode_return),
            boxpoints="all" if few else "outliers",
            jitter=0.7,
            pointpos=0,
            hoveron="points",
            fillcolor="rgba(0,0,0,0)",
            line={"color": colour, "width": 1.5},
            marker={"color": colour, "size": 4, "opacity": 0.6},
            customdata=[[look.label, c, t] for c, t in zip(own.condition, told, strict=True)],
            hovertemplate=HOVER,
        )
    figure.update_yaxes(title="return of an episode")
    figure.update_layout(boxmode="group")


def _videos(videos: Mapping[str, bytes | str], seed: int) -> Iterable[str]:
    """A video for each policy, or why there is none."""
    images = [
        f'<img width="{FILM["width"]}" alt="An episode under {escape(STYLES[policy].label)}" '
        f'src="data:image/gif;base64,{base64.b64encode(video).decode()}">'
        for policy, video in videos.items()
        if isinstance(video, bytes)
    ]
    if images:
        yield (
            f"<p>The first agent in the first episode (seed {seed}), in the environment as it is. "
            "Of long episodes not every step is shown.</p>"
        )
        yield f'<div class="videos">{"".join(images)}</div>'
    for reason in dict.fromkeys(video for video in videos.values() if isinstance(video, str)):
        names = ", ".join(STYLES[name].label for name in videos if videos[name] == reason)
        yield f"<p>There is no video of {escape(names)}: {escape(reason)}.</p>"
