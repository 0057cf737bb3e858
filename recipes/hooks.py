"""What is done beside training: after each step and at the end of a run, on every process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from recipes.together import attempt

if TYPE_CHECKING:
    from recipes.running import Run


class Hook(Protocol):
    """Something that is told of every step: a tracker, an evaluation, sample videos.

    It is made and called on every process, in the same order, with the same ``line``; so it may use collectives, as long as
    every process comes to them. A :class:`DataError` of one process ends the run of all before the next step.
    """

    def on_step(self, this: Run, line: dict[str, Any]) -> None:
        """After a step: ``this.step`` steps are done, and ``line`` is what the log says of the last one; it may be added to."""

    def on_end(self, this: Run) -> None:
        """Once, however the run ends, before its checkpoint is written. Others may be gone by then: no collectives."""


HOOKS: list[Callable[[Run], Hook | None]] = []
"""More makers of hooks, for a recipe of one's own: each looks at the settings of a run, and makes one or none."""


def hooks_of(this: Run) -> list[Hook]:
    """The hooks that the settings of a run ask for; the tracker comes after those that add to the line."""
    from recipes.held_out import held_out
    from recipes.samples import samples
    from recipes.tracking import tracking

    return [hook for make in (held_out, samples, *HOOKS, tracking) if (hook := make(this)) is not None]


def after_step(hooks: list[Hook], this: Run, line: dict[str, Any]) -> str | None:
    """Call all hooks; returns the first problem."""
    problems = [attempt(lambda hook=hook: hook.on_step(this, line))[1] for hook in hooks]  # type: ignore[misc]
    return next((problem for problem in problems if problem), None)


def after_run(hooks: list[Hook], this: Run) -> None:
    """Let all hooks end what they have open."""
    for hook in hooks:
        hook.on_end(this)
