import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from PIL import Image

from equirl.agents import video
from equirl.agents.evaluation import episode_returns
from equirl.agents.policies import MAKERS
from equirl.agents.saved import find_agents
from equirl.agents.video import (
    CAPTION,
    GAP,
    Video,
    make_env,
    picture,
    play_episode,
    side_by_side,
    write_gif,
)

BLUE, GREEN = (0, 90, 181), (0, 158, 115)


class Walk:
    """Always the same action."""

    def __init__(self, action):
        self.action = action

    def predict(self, observation, state, episode_start, deterministic):
        assert deterministic and state is None and episode_start.shape == (1,)
        return np.array(self.action), None


@pytest.fixture
def tiny_video(tiny_runs, tmp_path):
    return Video(tiny_runs[0], episodes=2, seed=0, device="cpu", output=tmp_path / "film.gif")


@pytest.fixture
def agent(tiny_runs):
    return find_agents(tiny_runs[0])[0]


def cell(image, colour, n=4):
    """The centre of what has a colour, in the coordinates of an observation."""
    pixels = np.asarray(image)[CAPTION:]
    rows, columns = np.nonzero((pixels == colour).all(-1))
    side = len(pixels)
    x, y = columns.mean() * n // side, (side - 1 - rows.mean()) * n // side
    return (2 * np.array([x, y]) - (n - 1)) / (n - 1)


@pytest.mark.parametrize("condition", ["original", "transformed", 1, 2])
def test_gridworld_is_shown_as_the_agent_sees_it(agent, condition):
    env = make_env(agent, condition)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        shown = picture(env, "", 240)
        assert shown.size == (128, 128 + CAPTION)
        np.testing.assert_allclose(cell(shown, BLUE), observation[:2], atol=1e-6)
        np.testing.assert_allclose(cell(shown, GREEN), observation[2:], atol=1e-6)


@pytest.mark.parametrize("element", [0, 1, 3])
def test_a_step_goes_where_the_agent_wanted(agent, element):
    pictures = play_episode(Walk(1), make_env(agent, element), 0, "up", 240)
    before, after = (cell(one, BLUE) for one in pictures[:2])
    assert after[0] == before[0] and after[1] > before[1]


def test_pictures_are_no_wider_than_asked(agent):
    env = make_env(agent, "original")
    env.reset(seed=0)
    assert picture(env, "", 64).size == (64, 64 + CAPTION)


def test_caption_tells_policy_and_return(agent):
    env = make_env(agent, "original")
    env.reset(seed=0)
    captions = [
        np.asarray(picture(env, text, 240))[:CAPTION] for text in ("plain\nreturn 0", "", "lambda")
    ]
    assert (captions[1] == 255).all()
    assert all((a != b).any() for a, b in itertools.combinations(captions, 2))


def test_episodes_are_those_of_the_evaluation(agent, monkeypatch):
    model = agent.load("cpu")
    captions = []
    monkeypatch.setattr(
        video, "picture", lambda env, caption, width: captions.append(caption) or caption
    )
    for seed, expected in enumerate(episode_returns(model, agent, "transformed", 3, seed=0)):
        frames = play_episode(model, make_env(agent, "transformed"), seed, "plain", 240)
        assert frames[0] == "plain\nreturn 0"
        assert frames[-1] == f"plain\nreturn {expected:g}"


def test_panes_that_end_earlier_hold_their_last_picture():
    red, green, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue"))
    frames = side_by_side([[red, green], [blue, blue, red, green]])
    assert [frame.size for frame in frames] == [(16 + GAP, 6)] * 4
    left, right = ([frame.getpixel((x, 3)) for frame in frames] for x in (0, 15 + GAP))
    assert left == [(255, 0, 0)] + [(0, 255, 0)] * 3
    assert right == [(0, 0, 255)] * 2 + [(255, 0, 0), (0, 255, 0)]
    assert frames[0].getpixel((8, 3)) == (255, 255, 255)


def test_gif_shows_the_frames(tmp_path):
    colours = [(250, 0, 0), (0, 200, 0), (0, 0, 150)]
    frames = [Image.new("RGB", (20, 10), colour) for colour in colours]
    write_gif(frames, 8, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as film:
        assert film.size == (20, 10) and film.n_frames == 3 and film.info["loop"] == 0
        for i, colour in enumerate(colours):
            film.seek(i)
            assert film.info["duration"] == 120  # of 125, as GIFs count in hundredths
            assert np.abs(np.subtract(film.convert("RGB").getpixel((5, 5)), colour)).max() < 9


def test_video_shows_each_policy_in_the_same_episodes(tiny_video, capsys):
    video.main(dataclasses.replace(tiny_video, policies=("plain", "equitune", "equizero")))
    assert capsys.readouterr().out == f"{tiny_video.output}\n"
    assert tiny_video.output.stat().st_size < 150_000
    with Image.open(tiny_video.output) as film:
        assert film.size == (3 * 128 + 2 * GAP, 128 + CAPTION)
        first = np.asarray(film.convert("RGB"))
        total = 0
        for i in range(film.n_frames):
            film.seek(i)
            total += film.info["duration"]
    panes = [first[:, x : x + 128] for x in range(0, first.shape[1], 128 + GAP)]
    assert (panes[0][CAPTION:] == panes[1][CAPTION:]).all()
    assert (panes[1][CAPTION:] == panes[2][CAPTION:]).all()
    assert (panes[0][:CAPTION] != panes[1][:CAPTION]).any()
    # each episode has at least two pictures, and is held for a second
    assert total >= 2 * (2 + 8) * 120


def test_policies_act_in_their_own_panes(tiny_video, monkeypatch):
    """One walks up, the other to the right."""
    for name, action in (("plain", 1), ("equizero", 0)):
        monkeypatch.setitem(MAKERS, name, lambda subject, action=action: Walk(action))
    films = []
    monkeypatch.setattr(video, "write_gif", lambda frames, *_: films.append(frames))
    video.main(dataclasses.replace(tiny_video, condition="original", episodes=1, seed=3))
    first, second = films[0][:2]
    for x, moved in ((0, 1), (128 + GAP, 0)):
        box = (x, 0, x + 128, first.height)
        step = cell(second.crop(box), BLUE) - cell(first.crop(box), BLUE)
        assert step[1 - moved] == 0 and step[moved] > 0


def test_equal_calls_give_equal_files(tiny_video):
    one = dataclasses.replace(tiny_video, policies=("plain",), episodes=1)
    again = dataclasses.replace(one, output=tiny_video.output.with_name("again.gif"))
    for arguments in (one, again):
        video.main(arguments)
    assert again.output.read_bytes() == one.output.read_bytes()


@pytest.mark.filterwarnings("ignore")  # pygame's imports
def test_video_of_cartpole(new_agent, tmp_path):
    pytest.importorskip("pygame")
    film = tmp_path / "film.gif"
    video.main(
        Video(
            new_agent,
            env="CartPole-v1",
            env_kwargs=("max_episode_steps=9",),
            policies=("plain",),
            episodes=1,
            device="cpu",
            width=120,
            output=film,
        )
    )
    with Image.open(film) as opened:
        assert opened.size == (120, 80 + CAPTION)
        assert opened.info["duration"] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "--episodes must be at least 1; got 0"),
        ({"width": 10}, "--width must be at least 64; got 10"),
        ({"policies": ()}, "no policies given"),
        ({"seed": -1}, "--seed"),
        ({"device": "cudaa"}, "there is no device cudaa here"),
        ({"condition": "turned"}, "a condition is original, transformed"),
    ],
)
def test_wrong_arguments(tiny_video, change, message):
    with pytest.raises(ValueError, match=message):
        video.main(dataclasses.replace(tiny_video, **change))


def test_wrong_output_is_refused_before_any_work(tiny_video, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "find_agent", lambda _: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"a video is a GIF; .*name it \*.gif"):
        video.main(dataclasses.replace(tiny_video, output=tmp_path / "film.mp4"))
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file"):
        video.main(dataclasses.replace(tiny_video, output=tmp_path / "folder.gif"))


class Blind(CartPoleEnv):
    metadata = {"render_modes": []}


def test_environment_without_pictures_is_refused(agent):
    gym.register("my/Blind-v0", Blind)
    with pytest.raises(ValueError, match="the render mode rgb_array; my/Blind-v0 has none"):
        make_env(dataclasses.replace(agent, env_id="my/Blind-v0", env_kwargs={}), "original")


class Dictionary(gym.Wrapper):
    """Looks up what an action means in a dict, where an array of one number is no key."""

    def step(self, action):
        return self.env.step({0: 0, 1: 1, 2: 2, 3: 3}[action])


@pytest.mark.parametrize("condition", ["original", 1])
def test_actions_are_numbers_as_the_space_samples_them(agent, condition):
    env = Dictionary(gym.make(agent.env_id, **agent.env_kwargs, render_mode="rgb_array"))
    filmed = video.under(env, condition)
    assert len(play_episode(agent.load("cpu"), filmed, 0, "plain", 240)) > 1


def test_captions_are_not_cut_off(agent):
    env = make_env(agent, "original")
    env.reset(seed=0)
    name = "a policy of a very long name"
    short, long = (picture(env, f"{name}\nreturn {r}", 64) for r in (0, -12345.6))
    assert short.size == long.size and short.width > 120  # wider than the picture
    beyond = np.asarray(long)[:CAPTION, -1:]
    assert (beyond == 255).all()  # the last letter ends before the edge
