"""Film an agent under several policies side by side, in the same episodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

import equirl
from equicore.lab.command import check_least, check_several
from equicore.lab.store import check_writable, replacing
from equirl.agents.cli import run
from equirl.agents.evaluation import FIRST_SEED, check_seed, parse_condition, under
from equirl.agents.policies import PolicyName, Subject
from equirl.agents.saved import OneAgent, SavedAgent
from equirl.envs.gridworld import Gridworld

CAPTION = 16  # pixels above each pane
GAP = 8  # pixels between panes


@dataclasses.dataclass
class Video(OneAgent):
    """Film an agent under several policies side by side, as a GIF.

    Every policy plays the same episodes. In a transformed gridworld the picture is turned, as the
    agent sees it; other environments show the original. Classic control needs pygame.

    Example: equirl video dqn.zip --env Acrobot-v1 --policies plain equizero --episodes 2
    """

    policies: tuple[PolicyName, ...] = ("plain", "equizero")
    """The plain agent, or symmetrised policies around it; a pane for each."""
    condition: str = "transformed"
    """original, transformed (a random group element for each episode), or one element: 1."""
    episodes: int = 4
    """Episodes, one after the other."""
    seed: int = FIRST_SEED
    """Seed of the first episode; the others follow."""
    width: int = 240
    """Largest width of a pane in pixels."""
    output: Path = Path("results/video.gif")
    """The GIF."""


def make_env(agent: SavedAgent, condition: str | int) -> gym.Env:
    """The agent's environment under a condition, for rendering to arrays.

    Raises:
        ValueError: If the environment cannot be rendered so.
    """
    modes = gym.make(agent.env_id, **agent.env_kwargs).metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        raise ValueError(
            f"a video needs an environment with the render mode rgb_array; {agent.env_id} has "
            f"{', '.join(modes) or 'none'}"
        )
    env = gym.make(agent.env_id, **{**agent.env_kwargs, "render_mode": "rgb_array"})
    return under(env, condition)


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
    framed = Image.new("RGB", (pane.width, pane.height + CAPTION), "white")
    framed.paste(pane, (0, CAPTION))
    ImageDraw.Draw(framed).text((2, 2), caption, fill="black")
    return framed


def play_episode(
    policy: PolicyPredictor, env: gym.Env, seed: int, name: str, width: int
) -> list[Image.Image]:
    """The pictures of one episode, from the first state to the last, with the return so far."""
    observation, _ = env.reset(seed=seed)
    episode_return, done = 0.0, False
    pictures = [picture(env, f"{name}: return 0", width)]
    while not done:
        action, _ = policy.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_return, done = episode_return + float(reward), terminated or truncated
        pictures.append(picture(env, f"{name}: return {episode_return:g}", width))
    return pictures


def side_by_side(panes: list[list[Image.Image]]) -> list[Image.Image]:
    """Pictures of several panes, of one size, as one; those that end earlier hold their last."""
    width, height = panes[0][0].size
    frames = []
    for i in range(max(map(len, panes))):
        frame = Image.new("RGB", (len(panes) * (width + GAP) - GAP, height), "white")
        for j, pane in enumerate(panes):
            frame.paste(pane[min(i, len(pane) - 1)], (j * (width + GAP), 0))
        frames.append(frame)
    return frames


def write_gif(frames: list[Image.Image], fps: float, path: Path) -> None:
    """Write pictures of one size as a GIF of 64 colours that repeats for ever."""
    # the colours of some frames serve for all, so that nothing flickers
    some = [np.asarray(frame) for frame in frames[:: -(-len(frames) // 8)]]
    palette = Image.fromarray(np.concatenate(some)).quantize(64)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    with replacing(path) as temporary:
        first.save(
            temporary, save_all=True, append_images=others, duration=round(1000 / fps), loop=0
        )


def main(arguments: Video) -> None:
    """Play, film and say where the film is."""
    check_several(arguments, "policies")
    check_least(arguments, episodes=1, width=64)
    if arguments.output.suffix.lower() != ".gif":
        raise ValueError(f"a video is a GIF; got --output {arguments.output}, name it *.gif")
    check_seed(arguments.seed)
    check_writable(arguments.output)
    agent = arguments.find()
    env = make_env(agent, parse_condition(arguments.condition, agent.symmetry()))
    subject = Subject(agent, device=arguments.device)
    env.reset(seed=arguments.seed)
    env.render()  # what is missing for it shows now, not after lambda has learned
    policies = {name: subject.policy(name) for name in arguments.policies}
    fps = env.metadata.get("render_fps", 30)
    frames: list[Image.Image] = []
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    for seed in tqdm(seeds, desc="filming", unit="episode", disable=None):
        width = arguments.width
        panes = [play_episode(p, env, seed, name, width) for name, p in policies.items()]
        frames += side_by_side(panes)
        frames += frames[-1:] * round(fps)  # a second to see how it ended
    env.close()
    write_gif(frames, fps, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    run(main, Video)
