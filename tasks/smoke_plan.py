"""Where an update of orchestrator-smoke is made to fail, and how: a plan that its tests hold against the product."""

from __future__ import annotations

from dataclasses import dataclass

from dailies.catalog.update import STAGES
from tasks import catalog as steps
from tasks._step import REGISTRY
from tasks.smoke_room import PUBLISH

STEPS = [step for step in REGISTRY.values() if step.function.__module__ == steps.__name__]
NAMED = ("before_merge", "during_ann_build", "after_merge_before_similarity")
STAGE_OF = dict(zip(NAMED, ("merge", "index", "similar"), strict=True))
BETWEEN = ("catalog.page#9", "catalog.during_merge", "catalog.during_rank", "catalog.similar")
QUICK_RUNS = ("merge_catalog:before", "index_videos:after", "relate_videos:before", "publish_catalog:after")
BEHIND = (
    "publish_catalog:after",
    "publish_catalog:committed",
    "announce_catalog:",
    "show_catalog:",
    "sweep_catalog:",
)
# What is passed while files are made, by the step that finishes them.
MAKES = {
    "index_videos": ("catalog.during_merge", "catalog.during_ann_build"),
    "relate_videos": ("catalog.similar",),
}


@dataclass(frozen=True)
class Failure:
    """``where``: in the process of a stage, in the run itself (which takes its stages along), in a step of a run that
    lives on, or on the disk."""

    name: str
    where: str
    point: str
    action: str = "kill"

    @property
    def told(self) -> str:
        how = {"kill": "killed at", "raise": "raised at", "stop": "frozen at", "full": "disk full in"}[self.action]
        return f"{how} {self.point}"

    @property
    def next(self) -> str:
        """What a step that is tried again passes next."""
        step, _, at = self.point.partition(":")
        return f"{step}:after" if at == "before" else f"{step}:before#2"

    @property
    def published(self) -> bool:
        """At the moment in which the trial looks: of a step that is tried again, when it is."""
        passed = (self.point, self.next) if self.where == "step" else (self.point,)
        return any(point.startswith(BEHIND) for point in passed)


def failures(full: bool) -> list[Failure]:
    """The quick ones first, so that full covers what quick does."""
    made = [Failure(name, "stage", f"catalog.{name}") for name in NAMED]
    every = [point for step in STEPS for point in step.points]
    made += [Failure(point, "run", point) for point in (every if full else QUICK_RUNS)]
    if full:
        made += [Failure(point, "stage", point) for point in BETWEEN]
        made += [Failure(f"{name}-raise", "stage", f"catalog.{name}", "raise") for name in NAMED]
        made += [Failure(f"{point}-raise", "step", point, "raise") for point in every]
        named = {stage: name for name, stage in STAGE_OF.items()}
        made += [Failure(f"{named.get(at, at)}-disk-full", "disk", at, "full") for at in (*STAGES, PUBLISH)]
        made += [Failure("zombie", "zombie", "publish_catalog:before", "stop")]
    return made


def made_before(failure: Failure) -> set[str]:
    """What the makers of those files pass that were finished at this point."""
    step, _, at = failure.point.partition(":")
    order = [each.name for each in STEPS]
    done = order[: order.index(step) + (at != "before")]
    return {passed for name in done for passed in MAKES.get(name, ())}
