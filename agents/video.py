"""Film an agent under several policies side by side, in the same episodes.

equirl video results/runs/dqn/equirl-Gridworld-v0_0
equirl video dqn-CartPole-v1.zip --env CartPole-v1 --policies plain lambda --episodes 1
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from PIL import Image, ImageDraw
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

import equirl
from equicore.files import check_writable, replacing
from equirl.agents.cli import check_least, run
from equirl.agents.evaluation import (
    FIRST_SEED,
    SavedAgent,
    check_device,
    check_seed,
    find_agents,
    parse_condition,
)
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.agents.policies import PolicyName, make_policy
from equirl.envs.gridworld import Gridworld

CAPTION = 16  # pixels above each pane
GAP = 8  # pixels between panes


@dataclasses.dataclass
class Video:
    """Film an agent under several policies side by side, as a GIF.

    Every policy plays the same episodes. In a transformed gridworld the picture is turned, as the
    agent sees it; other environments show the original. Classic control needs pygame.

    Example: equirl video dqn.zip --env Acrobot-v1 --policies plain equizero --episodes 2
    """

    agent: tyro.conf.Positional[Path]
    """A zip file that Stable-Baselines3 saved, or a run folder. Nothing in it is executed."""
    env: str | None = None
    """Environment id; known from the run folder when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value; known from the run folder when omitted."""
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
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""
    output: Path = Path("results/video.gif")
    """The GIF."""


def make_env(agent: SavedAgent, condition: str | int) -> equirl.SymmetryWrapper:
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
    if condition == "transformed":
        return equirl.RandomSymmetry(env)
    return equirl.SymmetryWrapper(env, element=0 if condition == "original" else int(condition))


def picture(env: equirl.SymmetryWrapper, caption: str, width: int) -> Image.Image:
    """What the environment shows, at most ``width`` pixels wide, below a caption.

    Element k of the gridworld's group turns it counter-clockwise by k quarter turns.
    """
    pixels = np.asarray(env.render())
    if isinstance(env.unwrapped, Gridworld):
        pixels = np.rot90(pixels, env.element)
    pane = Image.fromarray(np.ascontiguousarray(pixels))
    if pane.width > width:
        pane = pane.resize((width, round(pane.height * width / pane.width)))
    framed = Image.new("RGB", (pane.width, pane.height + CAPTION), "white")
    framed.paste(pane, (0, CAPTION))
    ImageDraw.Draw(framed).text((2, 2), caption, fill="black")
    return framed


def play_episode(
    policy: PolicyPredictor, env: equirl.SymmetryWrapper, seed: int, name: str, width: int
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
    """Pictures of several panes as one; those that end earlier hold their last picture."""
    frames = []
    for i in range(max(map(len, panes))):
        shown = [pane[min(i, len(pane) - 1)] for pane in panes]
        size = (sum(one.width + GAP for one in shown) - GAP, max(one.height for one in shown))
        frame = Image.new("RGB", size, "white")
        left = 0
        for one in shown:
            frame.paste(one, (left, 0))
            left += one.width + GAP
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
    if not arguments.policies:
        raise ValueError("no policies given: name some with --policies, as in plain equizero")
    check_least(arguments, episodes=1, width=64)
    if arguments.output.suffix.lower() != ".gif":
        raise ValueError(f"a video is a GIF; got --output {arguments.output}, name it *.gif")
    check_seed(arguments.seed)
    check_device(arguments.device)
    check_writable(arguments.output)
    (agent,) = find_agents(arguments.agent, arguments.env, parse_env_kwargs(arguments.env_kwargs))
    env = make_env(agent, parse_condition(arguments.condition, agent.symmetry()))
    model = agent.load(arguments.device)
    env.reset(seed=arguments.seed)
    env.render()  # what is missing for it shows now, not after lambda has learned
    policies = {name: make_policy(name, model, agent) for name in arguments.policies}
    fps = env.metadata.get("render_fps", 30)
    frames: list[Image.Image] = []
    for seed in tqdm(
        range(arguments.seed, arguments.seed + arguments.episodes),
        desc="filming",
        unit="episode",
        disable=None,
    ):
        panes = [
            play_episode(policy, env, seed, name, arguments.width)
            for name, policy in policies.items()
        ]
        frames += side_by_side(panes)
        frames += frames[-1:] * round(fps)  # a second to see how it ended
    env.close()
    write_gif(frames, fps, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    run(main, Video)
