"""``animeshooter build``: films, named in any way that ``collect`` knows, to a dataset directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from curation import engine as engines
from curation.availability import gone_sources
from curation.collect import expand
from curation.config import BuildConfig
from curation.job import BuildReport, Gathered, Job, Progress, not_had
from curation.optout import STAGE as OPTED_OUT
from curation.origin import Address
from curation.rules import Rule


def build(
    sources: Sequence[Path | str],
    out: Path,
    config: BuildConfig | None = None,
    *,
    workers: int = 1,
    engine: str = "local",
    rules: Sequence[Rule] | None = None,
    work: Path | None = None,
    downloads: Path | None = None,
    retry_failed: bool = False,
    opt_out: Sequence[Path] = (),
    availability: Path | None = None,
    progress: Progress = lambda done, total, label: None,
) -> BuildReport:
    """Build a dataset directory.

    Args:
        sources: what :func:`curation.collect.expand` takes: films, folders, patterns, lists, addresses.
        out: the directory to write; an earlier dataset there is replaced when the new one is whole.
        config: the settings.
        workers: processes; the result does not depend on their number.
        engine: ``local`` or ``ray``; the result does not depend on it either. On a cluster, films, output and work folder
            must lie where every node sees them under the same path.
        rules: which shots training takes; None for those of ``curation/rules.yaml``.
        work: folder for staged results, kept for the next build; None for ``OUT.work``, which is removed when every film is
            settled.
        downloads: folder for fetched films, kept; None for ``OUT.films``.
        retry_failed: try also addresses that an earlier run says failed for good.
        opt_out: lists of films that are not to be used, see :mod:`curation.optout`; what was withdrawn from an earlier dataset
            at ``out`` is left out without being listed.
        availability: a report of ``verify-sources``; what it says is gone is not asked for.
        progress: called with steps done, steps in all, and a label, whenever a film has gone through a stage.

    Raises:
        DataError: nothing could be built (the first films' reasons are in the message), or the output cannot be written.
    """
    run = partial(engines.run, engine, workers)
    job = Job(out, config or BuildConfig(), run, rules, work, downloads, opt_out, progress)
    gone = gone_sources(availability) if availability else {}

    def withheld(address: Address) -> tuple[str, str] | None:
        if (why := job.optout.match(address=address.url)) is not None:
            return OPTED_OUT, why
        known = gone.get(address.key)
        return None if known is None else ("collect", f"not asked for, it was gone on {known.checked}: {known.reason}")

    with job.begun():
        fetching = replace(job.config.download, max_seconds=job.config.download.max_seconds or job.config.screen.max_seconds)
        paths, unread = expand(
            sources, job.downloads, fetching, retry_failed=retry_failed, withheld=withheld, progress=progress
        )
        films, unusable = job.read(paths)
        lost = [not_had(loss) for loss in [*unread, *unusable]]
        return job.finish(Gathered(films, lost))
