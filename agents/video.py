"""Film an agent under several policies side by side, in the same episodes."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

import equirl
from equicore.lab.command import check_least, check_several
from equicore.lab.jobs import Workers
from equicore.lab.store import check_writable, replacing
from equirl.agents.arguments import Video
from equirl.agents.cli import run
from equirl.agents.evaluation import check_seed, parse_condition, under
from equirl.agents.plot import STYLES, drawn
from equirl.agents.policies import Subject
from equirl.agents.saved import SavedAgent, find_agent
from equirl.envs.gridworld import Gridworld

Tasks = dict[tuple[str, str], Callable[[], bytes | str]]
Videos = Mapping[str, Mapping[str, bytes | str]]
"""For each environment and policy a GIF, or the reason why there is none."""

FILM = {"width": 240, "most": 200, "size": 1_000_000}
"""Pixels, pictures and bytes of a video, at most."""

CAPTION = 30  # pixels above each pane: two lines
GAP = 8  # pixels between panes


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """Of captions: one with Greek letters, which matplotlib brings along."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 11)


def make_env(agent: SavedAgent, condition: str | int) -> gym.Env:
    """The agent's environment under a condition, for rendering to arrays.

    Raises:
        ValueError: If the environment cannot be rendered so.
    """
    modes = agent.make().metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        raise ValueError(
            f"a video needs an environment with the render mode rgb_array; {agent.env_id} has "
            f"{', '.join(modes) or 'none'}"
        )
    return under(agent.make(render_mode="rgb_array"), condition)


@contextlib.contextmanager
def no_screen() -> Iterator[None]:
    """Let pygame draw to arrays without looking for a screen, and complaining of none."""
    if "SDL_VIDEODRIVER" in os.environ:
        yield
        return
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        yield
    finally:
        os.environ.pop("SDL_VIDEODRIVER", None)


def picture(env: gym.Env, caption: str, width: int) -> Image.Image:
    """What the environment shows, at most ``width`` pixels wide, below a caption.

    Element k of the gridworld's group turns it counter-clockwise by k quarter turns.
    """
    pixels = np.asarray(env.render())
    if isinstance(env.unwrapped, Gridworld) and isinstance(env, equirl.SymmetryWrapper):
        pixels = np.rot90(pixels, env.element)
    pane = Image.fromarray(np.ascontiguousarray(pixels))
    if pane.width > width:
        pane = pane.resize((width, round(pane.height * width / pane.width)))
    # as wide as the caption of any return, as all pictures of a pane have one size
    lines = [*caption.split("\n")[:1], "return -99999.9"] if caption else [""]
    least = 4 + max(math.ceil(font().getlength(line)) for line in lines)
    framed = Image.new("RGB", (max(pane.width, least), pane.height + CAPTION), "white")
    framed.paste(pane, ((framed.width - pane.width) // 2, CAPTION))
    ImageDraw.Draw(framed).text((2, 2), caption, fill="black", font=font())
    return framed


def play_episode(
    policy: PolicyPredictor,
    env: gym.Env,
    seed: int,
    name: str,
    width: int,
    most: int | None = None,
) -> list[Image.Image]:
    """The pictures of one episode, from the first state to the last, with the return so far.

    An episode of more than ``most`` pictures, an even number, is shown by at most that many: every
    second step, or every fourth, and so on, and the last.
    """
    observation, _ = env.reset(seed=seed)
    episode_return, done = 0.0, False
    step, every = 0, 1
    state: Any = None
    pictures = [picture(env, f"{name}\nreturn 0", width)]
    while not done:
        first = np.array([step == 0])
        action, state = policy.predict(
            observation, state=state, episode_start=first, deterministic=True
        )
        action = np.asarray(action)[()]  # a number, as of the space's own sample, no array of one
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_return, done = episode_return + float(reward), terminated or truncated
        step += 1
        if done or step % every == 0:
            pictures.append(picture(env, f"{name}\nreturn {episode_return:g}", width))
        if most is not None and len(pictures) > most:
            pictures, every = pictures[::2], 2 * every
    return pictures


def side_by_side(panes: list[list[Image.Image]]) -> list[Image.Image]:
    """Pictures of several panes, of one height, as one; those that end earlier hold their last."""
    widths = [pane[0].width for pane in panes]
    size = (sum(widths) + GAP * (len(panes) - 1), panes[0][0].height)
    frames = []
    for i in range(max(map(len, panes))):
        frame, left = Image.new("RGB", size, "white"), 0
        for pane, width in zip(panes, widths, strict=True):
            frame.paste(pane[min(i, len(pane) - 1)], (left, 0))
            left += width + GAP
        frames.append(frame)
    return frames


def gif(frames: list[Image.Image], fps: float) -> bytes:
    """Pictures of one size as a GIF of 64 colours that repeats for ever."""
    # the colours of some frames serve for all, so that nothing flickers
    some = [np.asarray(frame) for frame in frames[:: -(-len(frames) // 8)]]
    palette = Image.fromarray(np.concatenate(some)).quantize(64)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    file, milliseconds = io.BytesIO(), round(1000 / fps)
    first.save(file, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return file.getvalue()


def write_gif(frames: list[Image.Image], fps: float, path: Path) -> None:
    """Write pictures of one size as a GIF, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(gif(frames, fps))


def clip(subject: Subject, policy: str, seed: int, width: int, most: int, size: int) -> bytes:
    """A GIF of one episode of an agent under a policy, in the environment as it is.

    Args:
        subject: The agent.
        policy: Its name.
        seed: Of the episode.
        width: Of the pictures, at most.
        most: How many pictures it has at most, an even number; see `play_episode`.
        size: How many bytes it has at most; it has fewer pictures if need be.
    """
    with no_screen(), contextlib.closing(make_env(subject.agent, "original")) as env:
        name = STYLES[policy].label
        pictures = play_episode(subject.policy(policy), env, seed, name, width, most)
        fps = env.metadata.get("render_fps", 30)
    while True:
        content = gif(pictures + pictures[-1:] * round(fps), fps)  # a second to see how it ended
        if len(content) <= size or len(pictures) <= 2:
            return content
        pictures = [*pictures[:-1:2], pictures[-1]]


def film(subjects: Sequence[Subject], returns: pd.DataFrame, seed: int, workers: Workers) -> Videos:
    """Film the first agent of each environment, as it was last saved, under each policy.

    Nothing that goes wrong is raised: it is the reason why there is no video.
    """
    tasks: Tasks = {}
    for env, rows in returns[returns.policy != "selected"].groupby("env", sort=False):
        first = rows[rows.agent == rows.agent.iloc[0]]
        own = [s for s in subjects if (s.agent.setting, s.agent.name) == (env, first.agent.iloc[0])]
        last = max(own, key=lambda subject: subject.budget)
        tasks |= {(str(env), p): functools.partial(_film, last, p, seed) for p in drawn(first)}
    # plain tells whether an environment can be rendered: where graphics are missing, to try it
    # again may end the process
    found = _filmed({key: task for key, task in tasks.items() if key[1] == "plain"}, workers)
    failed = {env: video for (env, _), video in found.items() if isinstance(video, str)}
    found |= {key: failed[key[0]] for key in tasks if key[0] in failed}
    found |= _filmed({key: task for key, task in tasks.items() if key not in found}, workers)
    videos: dict[str, dict[str, bytes | str]] = {env: {} for env, _ in tasks}
    for env, policy in tasks:
        videos[env][policy] = found[env, policy]
    return videos


def _filmed(tasks: Tasks, workers: Workers) -> dict[tuple[str, str], bytes | str]:
    try:
        found = workers.map([*tasks.values()], "filming") if tasks else []
    except ChildProcessError as error:
        found = [str(error)] * len(tasks)
    return dict(zip(tasks, found, strict=True))


def _film(subject: Subject, policy: str, seed: int) -> bytes | str:
    with _quiet():
        try:
            return clip(subject, policy, seed, **FILM)
        except Exception as error:  # whatever an environment raises: the returns are known
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        gc.collect()  # environments that could not be rendered complain when they go
    hint = "; without a screen, MuJoCo needs the variable MUJOCO_GL to be egl or osmesa"
    return reason + hint * ("GL" in reason)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing reach the terminal: graphics libraries write to it whatever Python does."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main(arguments: Video) -> None:
    """Play, film and say where the film is."""
    check_several(arguments, "policies")
    check_least(arguments, episodes=1, width=64, transitions=10)
    if arguments.output.suffix.lower() != ".gif":
        raise ValueError(f"a video is a GIF; got --output {arguments.output}, name it *.gif")
    check_seed(arguments.seed)
    check_writable(arguments.output)
    with no_screen():
        frames, fps = _filmed_episodes(arguments)
    write_gif(frames, fps, arguments.output)
    print(arguments.output)


def _filmed_episodes(arguments: Video) -> tuple[list[Image.Image], float]:
    """The pictures of all episodes, one after the other, and how many are shown in a second."""
    agent = find_agent(arguments)
    env = make_env(agent, parse_condition(arguments.condition, agent.symmetry()))
    subject = Subject(agent, arguments.transitions, arguments.device)
    env.reset(seed=arguments.seed)
    env.render()  # what is missing for it shows now, not after lambda has learned
    policies = {name: subject.policy(name) for name in arguments.policies}
    fps = env.metadata.get("render_fps", 30)
    frames: list[Image.Image] = []
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    for seed in tqdm(seeds, desc="filming", unit="episode", disable=None):
        width = arguments.width
        panes = [
            play_episode(p, env, seed, STYLES[name].label, width) for name, p in policies.items()
        ]
        frames += side_by_side(panes)
        frames += frames[-1:] * round(fps)  # a second to see how it ended
    env.close()
    return frames, fps


if __name__ == "__main__":
    run(main, Video)
