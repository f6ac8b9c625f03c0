import os
import re
import shutil
from html.parser import HTMLParser

import gymnasium as gym
import pandas as pd
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from PIL import Image

import equirl
from equicore.lab import statistics
from equicore.lab.jobs import Workers
from equirl.agents import report, video
from equirl.agents.compare import Compare, explained, findings, main, summarize, write_comparison
from equirl.agents.policies import Subject
from equirl.agents.report import write_report
from equirl.agents.saved import find_agents
from equirl.agents.video import clip, film, gif

COMMAND = "equirl compare 'my agents/a&b.zip' --episodes 10"
CHECK = "CartPole-v1: the symmetry holds (exact)"
SCRIPT = "<script>alert(1)<"  # the / of the end cannot stand in a file name
FIRST = 2_000_000


class Page(HTMLParser):
    """What stands in a page, by its tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.rows, self.inside, self.said = [], [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.inside.append((tag, dict(attributes).get("class")))

    def handle_endtag(self, tag):
        assert self.inside.pop()[0] == tag

    def handle_data(self, data):
        if self.inside and self.inside[-1][0] in ("td", "th"):
            self.rows[-1][-1] += data
        if data.strip():
            self.said.setdefault(self.inside[-1], []).append(data)


@pytest.fixture
def write(make_returns, tmp_path, monkeypatch):
    """Writes the page of some returns, beside table.md."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    monkeypatch.setattr("equirl.agents.compare.plot_returns", lambda returns, folder: [])

    def write(videos=None, change=lambda returns: returns, **options):
        options = {"envs": ("CartPole-v1",), "budgets": (1000,), "agents": 1, **options}
        returns = change(make_returns(**options))
        summary = summarize(returns)
        found = findings(returns, summary, checks=[CHECK])
        write_comparison(tmp_path, returns, found.lines, summary, COMMAND)
        notes = explained(returns), COMMAND
        write_report(tmp_path, returns, summary, found, videos or {}, FIRST, *notes)
        return (tmp_path / "report.html").read_text()

    return write


@pytest.fixture
def written(write):
    return write()


def test_the_verdict_stands_first_and_once(written, tmp_path):
    page = Page(written)
    (verdict,) = page.said["p", "verdict"]
    assert verdict.startswith("CartPole-v1, 1,000 steps: use lambda for this agent, provided that")
    assert f"- {verdict[:-1]}\n" in (tmp_path / "table.md").read_text()
    assert page.said["h1", None] == ["Does symmetry help this agent?"]
    assert page.tags.index("table") > page.tags.index("p")
    assert page.said["p", None][0] == f"{CHECK}."
    body = written.partition("<body>")[2]
    assert body.count("provided that") == 1 and ("p", "warning") not in page.said
    for line in (tmp_path / "table.md").read_text().splitlines():
        if line.startswith("- CartPole"):
            assert body.count(f"{line[2:]}<") + body.count(f"{line[2:]}.<") == 1


def test_warnings_are_told_apart(write):
    def with_random(returns):
        chance = returns[(returns.policy == "plain") & (returns.condition == "original")]
        return pd.concat([returns, chance.assign(policy="random", episode_return=100)])

    page = Page(write(change=with_random))
    (warning,) = page.said["p", "warning"]
    assert "WARNING: plain is not clearly better than random actions" in warning


def test_numbers_are_those_of_the_table(write, tmp_path):
    page = Page(write(envs=("CartPole-v1", "Acrobot-v1"), budgets=(100, 2000), agents=2))
    lines = [li for li in (tmp_path / "table.md").read_text().splitlines() if li.startswith("| ")]
    assert len(lines) == 1 + 2 * 2 * 2 * 4
    assert page.rows == [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert page.said["h1", None] == ["Does symmetry help these 2 agents?"]


def test_figures_tell_the_numbers_and_show_each_episode(written):
    figures = re.findall(r'Plotly\.newPlot\(\s*"(figure0-\d)"', written)
    assert figures == ["figure0-0", "figure0-1", "figure0-2"]
    for row in Page(written).rows[1:]:
        value, _, interval = row[5].partition(" ")
        told = f"mean return {value}<br>95 % interval {interval}<br>1 agent, 10 episodes each"
        assert told.replace("<", r"\u003c").replace(">", r"\u003e") in written
    assert written.count(f"episode 9, seed {FIRST + 9}") == 4 * 2
    captions = Page(written).said["figcaption", None]
    assert len(captions) == 3
    assert all("Error bars: 95 % intervals, by Student's t" in c for c in captions[:2])


def test_of_many_episodes_only_outliers_are_points(write, monkeypatch):
    monkeypatch.setattr(report, "MOST_POINTS", 79)  # there are 80
    assert "Only outliers are drawn as points" in write()


def test_it_says_how_it_was_made(written):
    page = Page(written)
    assert page.said["code", None] == [COMMAND]
    said = " ".join(page.said["p", None])
    assert f"equirl {equirl.__version__}." in said
    assert "10 episodes for each agent, policy and condition; training seeds 0." in said


def test_names_are_no_code(write):
    returns = {"agent": SCRIPT, "env": f"{SCRIPT}/script>"}
    videos = {returns["env"]: {"plain": f"{SCRIPT}/script>"}}
    plain, odd = Page(write(videos)), write(videos, change=lambda r: r.assign(**returns))
    assert Page(odd).tags == plain.tags
    assert "<script>alert" not in odd
    assert f"{SCRIPT}/script>, 1,000 training steps" in Page(odd).said["h2", None]


def test_nothing_is_loaded_from_elsewhere(write):
    content = gif([Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")], 10)
    page = Page(write({"CartPole-v1": {"plain": content, "equizero": content}}))
    assert "link" not in page.tags and page.tags.count("img") == 2
    assert all(link.startswith("data:image/gif;base64,") for link in page.links)
    assert page.tags.count("script") == 1 + 3  # plotly once, and the figures


def test_the_same_comparison_gives_the_same_page(write):
    assert write() == write()


class Blind(CartPoleEnv):
    metadata = {"render_modes": []}


class Broken(CartPoleEnv):
    def render(self):
        raise RuntimeError("no screen\nhere")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Blind, "a video needs an environment with the render mode rgb_array; my/Pole-v0 has none"),
        (Broken, "no screen here"),
    ],
)
def test_why_there_is_no_video(kind, reason, cartpole_zip, make_returns, write, monkeypatch):
    gym.register("my/Pole-v0", kind)
    equirl.register_symmetry("my/Pole-v0", lambda spec: equirl.symmetry_of("CartPole-v1"))
    subject = Subject(find_agents(cartpole_zip, "my/Pole-v0")[0], device="cpu")
    returns = make_returns(envs=("my/Pole-v0",), agents=1).assign(agent="mine")
    tried = []
    monkeypatch.setattr(video, "clip", lambda *given, **how: tried.append(0) or clip(*given, **how))
    videos = film([subject], returns, 0, Workers(1))
    assert tried == [0]  # a second time might end the process
    names = ("plain", "equitune", "equizero", "lambda")
    assert videos == {"my/Pole-v0": dict.fromkeys(names, reason)}
    said = Page(write(videos)).said["p", None]
    assert f"There is no video of plain, equitune, equizero, λ-equitune: {reason}." in said


def test_a_process_that_ends_is_a_reason(cartpole_zip, make_returns, monkeypatch):
    class Killed(Workers):
        def map(self, *_):
            raise ChildProcessError("a worker was killed")

    subject = Subject(find_agents(cartpole_zip, "CartPole-v1")[0], device="cpu")
    returns = make_returns(envs=("CartPole-v1",), agents=1).assign(agent="mine")
    videos = film([subject], returns, 0, Killed(1))
    assert set(videos["CartPole-v1"].values()) == {"a worker was killed"}


def test_videos_are_small(cartpole_zip):
    subject = Subject(find_agents(cartpole_zip, "CartPole-v1")[0], device="cpu")
    whole, few = (clip(subject, "plain", 0, 240, most, 10**6) for most in (200, 4))
    small = clip(subject, "plain", 0, 240, 200, len(whole) // 2)
    assert len(few) < len(whole) and len(small) <= len(whole) // 2
    assert "SDL_VIDEODRIVER" not in os.environ


class Loud(CartPoleEnv):
    def render(self):
        os.write(2, b"from the depths of a library")
        raise RuntimeError("no OpenGL.")


def test_what_goes_wrong_is_said_on_the_page_only(cartpole_zip, make_returns, capfd):
    gym.register("my/Pole-v0", Loud)
    equirl.register_symmetry("my/Pole-v0", lambda spec: equirl.symmetry_of("CartPole-v1"))
    subject = Subject(find_agents(cartpole_zip, "my/Pole-v0")[0], device="cpu")
    returns = make_returns(envs=("my/Pole-v0",), agents=1).assign(agent="mine")
    (videos,) = film([subject], returns, 0, Workers(1)).values()
    assert videos["plain"].startswith("no OpenGL; without a screen, MuJoCo needs")
    assert "depths" not in capfd.readouterr().err


@pytest.fixture
def chromium():
    """A headless Chromium: that of $CHROMIUM, of the path, or playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        found = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
        path = next(filter(None, found), playwright.chromium.executable_path)
        if not os.path.exists(path):
            pytest.skip("no Chromium: neither in $CHROMIUM nor on the path nor of playwright")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.mark.slow
def test_the_page_in_a_browser(chromium, cartpole_zip, fits, tmp_path):
    agent = cartpole_zip.rename(cartpole_zip.with_name(f"{SCRIPT}.zip"))
    output = tmp_path / "out"
    main(Compare((agent,), "CartPole-v1", episodes=5, transitions=60, jobs=1, output=output))
    page = chromium.new_page()
    troubles = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: r.url.startswith(("data:", "file:")) or troubles.append(r.url))
    page.goto((output / "report.html").as_uri())

    number = Page((output / "report.html").read_text()).rows[2][5]
    bars = page.locator("#figure0-0 .bars .point")
    bars.nth(2).hover(
        force=True
    )  # of equitune, after two of plain; what takes the mouse lies above
    tooltip = page.locator("#figure0-0 .hoverlayer .hovertext")
    tooltip.wait_for()
    text = tooltip.text_content()
    assert text.startswith("equitune, original")
    assert f"mean return {number.partition(' ')[0]}" in text
    assert f"95 % interval {number.partition(' ')[2]}" in text and "1 agent, 5 episodes" in text

    page.locator("#figure0-2 .boxlayer path.point").first.hover(force=True)
    tooltip = page.locator("#figure0-2 .hoverlayer .hovertext")
    tooltip.wait_for()
    assert re.search(r"episode (\d), seed 200000\1", tooltip.text_content())
    assert tooltip.text_content().endswith(SCRIPT)

    images = page.locator("img")
    assert images.count() == 4
    for i in range(4):
        assert images.nth(i).evaluate("i => i.complete && i.naturalWidth * i.naturalHeight") > 100
    for i in range(3):
        assert page.locator(f"#figure0-{i} svg").first.bounding_box()["height"] > 300
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0 and troubles == []
