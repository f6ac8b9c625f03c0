"""Gymnasium's MuJoCo environments, version 5, which need the extra `mujoco`: their symmetries.

x is forward, y to the left, z up. Under the mirror image y -> -y a vector's y changes sign, and of
what turns (angular velocities, torques, the vector part of a quaternion) x and z do.

HalfCheetah, Hopper and Pusher have none: their bodies are not alike in front and behind, or on both
sides.
"""

from __future__ import annotations

from collections.abc import Sequence

from gymnasium.envs.registration import EnvSpec

from equirl.named import Change, mirror, move, negate, power, swap, symmetry, turn
from equirl.symmetry import Symmetry

AXES = ("x", "y", "z")
FORCES = tuple(f"{what} {axis}" for what in ("torque", "force") for axis in AXES)
VELOCITIES = tuple(f"{what} {axis}" for what in ("rotation", "motion") for axis in AXES)
INERTIA = ("inertia xx", "inertia yy", "inertia zz", "inertia xy", "inertia xz", "inertia yz",
           "moment x", "moment y", "moment z", "mass")  # fmt: skip
FREE = ("height", *(f"orientation {axis}" for axis in ("w", *AXES)))
"""Of a body that moves freely, but for where it is."""
MOVING = (*(f"velocity {axis}" for axis in AXES), *(f"spin {axis}" for axis in AXES))
SIDEWAYS = ("orientation x", "orientation z", "velocity y", "spin x", "spin z",
            "torque x", "torque z", "force y", "inertia xy", "inertia yz", "moment y",
            "rotation x", "rotation z", "motion y")  # fmt: skip
"""What the mirror image y -> -y negates, of a body and of each of its parts."""
LEGS = ("left front", "left back", "right back", "right front")
"""The Ant's legs 1 to 4; a quarter turn takes each to the next one."""
LIMBS = ("hip x", "hip z", "hip y", "knee"), ("shoulder 1", "shoulder 2", "elbow")
"""Of each side of the Humanoid: joints of the leg and of the arm."""


def inverted_pendulum_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of InvertedPendulum: every entry changes sign; the pole's tip is 1 mm off the middle."""
    entries = ("position", "angle", "velocity", "angular velocity")
    return symmetry(entries, ("force",), mirror([negate(*entries)], [negate("force")]))


def inverted_double_pendulum_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of InvertedDoublePendulum: all but the cosines of the angles changes sign."""
    entries = ("position", "sin first", "sin second", "cos first", "cos second", "velocity",
               "velocity first", "velocity second", "force of the rail")  # fmt: skip
    still = {"cos first", "cos second"}
    turned = negate(*(entry for entry in entries if entry not in still))
    return symmetry(entries, ("force",), mirror([turned], [negate("force")]))


def reacher_symmetry(spec: EnvSpec) -> Symmetry:
    """D4 of Reacher: quarter turns about the shoulder, and the mirror image.

    Any angle would do; these keep the box of the observations. The arm starts stretched out along
    x, always.
    """
    entries = ("cos first", "cos second", "sin first", "sin second", "target x", "target y",
               "velocity first", "velocity second", "gap x", "gap y")  # fmt: skip
    torques = ("torque first", "torque second")
    quarter = [turn("cos first", "sin first"), turn("target x", "target y"), turn("gap x", "gap y")]
    flipped = negate("sin first", "sin second", "target y", "velocity", "gap y")
    return symmetry(entries, torques, power(4, quarter, []), mirror([flipped], [negate(*torques)]))


def swimmer_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Swimmer: the mirror image; all but the velocity along x changes sign."""
    joints = ("first joint", "second joint")
    entries = (*_places(spec, "x", "y"), "angle", *joints, "velocity x", "velocity y", "spin",
               *(f"{joint} velocity" for joint in joints))  # fmt: skip
    turned = negate(*(entry for entry in entries if entry not in ("x", "velocity x")))
    return symmetry(entries, joints, mirror([turned], [negate(*joints)]))


def walker_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Walker2d: its two legs, which are alike in version 5, change places."""
    joints = [f"{side} {joint}" for side in ("right", "left") for joint in ("thigh", "leg", "foot")]
    entries = (*_places(spec, "x"), "height", "pitch", *joints, "velocity x", "velocity z",
               "pitch velocity", *(f"{joint} velocity" for joint in joints))  # fmt: skip
    legs = [swap("left", "right")]
    return symmetry(entries, joints, mirror(legs, legs))


def ant_names(spec: EnvSpec) -> tuple[list[str], list[str]]:
    """Names of the Ant's observations and actions."""
    joints = [f"{leg} {joint}" for leg in LEGS for joint in ("hip", "ankle")]
    parts = ["torso", *(f"{leg} {part}" for leg in LEGS for part in ("leg", "upper", "lower"))]
    entries = [*_places(spec, "x", "y"), *FREE, *joints, *MOVING]
    entries += [f"{joint} velocity" for joint in joints]
    if spec.kwargs.get("include_cfrc_ext_in_observation", True):
        entries += _each(parts, FORCES)
    return entries, [*joints[-2:], *joints[:-2]]  # the motors of leg 4 come first


def ant_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Ant: the mirror image y -> -y, in which hips turn the other way and ankles do not."""
    entries, actions = ant_names(spec)
    return symmetry(entries, actions, mirror(_mirrored(entries, "hip"), _mirrored(actions, "hip")))


def ant_turns(spec: EnvSpec) -> Symmetry:
    """C4 of Ant: quarter turns. Of the dynamics alone: the reward is the velocity along x."""
    names = ant_names(spec)
    return symmetry(*names, power(4, *([move({e: _turned(e) for e in of})] for of in names)))


def humanoid_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Humanoid: the mirror image y -> -y; its two sides are not quite alike."""
    sides = [f"{side} {joint}" for limb in LIMBS for side in ("right", "left") for joint in limb]
    joints = ["abdomen z", "abdomen y", "abdomen x", *sides]
    parts = ["torso", "waist", "pelvis"]
    parts += [f"{side} {part}" for limb in (("thigh", "shin", "foot"), ("upper arm", "lower arm"))
              for side in ("right", "left") for part in limb]  # fmt: skip
    entries = [*_places(spec, "x", "y"), *FREE, *joints, *MOVING]
    entries += [f"{joint} velocity" for joint in joints]
    for kind, added in (
        ("cinert", _each(parts, INERTIA)),
        ("cvel", _each(parts, VELOCITIES)),
        ("qfrc_actuator", [f"{joint} actuation" for joint in joints]),
        ("cfrc_ext", _each(parts, FORCES)),
    ):
        entries += added if spec.kwargs.get(f"include_{kind}_in_observation", True) else []
    actions = ["abdomen y", "abdomen z", "abdomen x", *sides]
    turned = "abdomen z", "abdomen x", "shoulder"
    return symmetry(
        entries, actions, mirror(_mirrored(entries, *turned), _mirrored(actions, *turned))
    )


def _places(spec: EnvSpec, *names: str) -> tuple[str, ...]:
    """Where a body is, which observations leave out by default."""
    return () if spec.kwargs.get("exclude_current_positions_from_observation", True) else names


def _each(parts: Sequence[str], what: Sequence[str]) -> list[str]:
    return [f"{part} {one}" for part in parts for one in what]


def _mirrored(entries: Sequence[str], *turned: str) -> list[Change]:
    """The mirror image of entries: sides change places, and what points sideways its sign."""
    middle = [e for e in entries if not e.startswith(("left ", "right "))]
    phrases = [p for p in (*SIDEWAYS, *turned) if any(_has(e, p) for e in entries)]
    sides = [p for p in phrases if any(_has(e, p) for e in entries if e not in middle)]
    alone = [e for e in middle if e == "y" or any(_has(e, p) for p in phrases)]
    return [swap("left", "right", negate=sides), *([negate(*alone)] if alone else [])]


def _has(entry: str, phrase: str) -> bool:
    return f" {phrase} " in f" {entry} "


def _turned(entry: str) -> str:
    """Where an entry of the Ant goes in a quarter turn, with a ``-`` if it changes its sign.

    Ankles of neighbouring legs bend about axes at right angles, which a turn takes to each other
    with the same sign every other time.
    """
    leg = next((i for i, leg in enumerate(LEGS) if entry.startswith(leg)), None)
    sign, target = False, entry
    if leg is not None:
        target = entry.replace(LEGS[leg], LEGS[(leg + 1) % 4])
        sign = _has(entry, "ankle") and leg in (0, 2)
    words = target.split()
    if words[-1] in ("x", "y"):
        sign = words[-1] == "y"
        target = " ".join([*words[:-1], "x" if sign else "y"])
    return f"-{target}" if sign else target
