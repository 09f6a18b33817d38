"""Training Jobs as they were last seen, by run; filled by whoever watches, and by what is read on demand."""

import time
from collections.abc import Callable

from hmi_operator.kubernetes.jobs.facts import Body, JobFacts, is_owned, resource_of_labels
from hmi_operator.ports import ResourceRef

DELETED = "DELETED"


class TrainingCache:
    """Jobs by namespace and run; to be used from one event loop.

    The namespace is part of the key, so that nobody's labels can stand for a run of another namespace.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: dict[tuple[str, str], tuple[JobFacts, float]] = {}

    def on_job(self, type_: str | None, body: Body) -> ResourceRef | None:
        """Take in a watch event of a Job; return the resource to wake.

        None when the Job is not ours, or says nothing that was not known: that it is there is known to
        whoever made it.
        """
        facts = JobFacts.of(body)
        if facts is None or not is_owned(body):
            return None
        known = self.job(facts.namespace, facts.run_id)
        if type_ == DELETED:
            if known is None or known.uid == facts.uid:
                self.forget(facts.namespace, facts.run_id)
            return resource_of_labels(body)
        self.put(facts)
        return resource_of_labels(body) if facts != known and not facts.untouched else None

    def put(self, facts: JobFacts) -> None:
        """Remember a Job as it is now."""
        self._jobs[facts.namespace, facts.run_id] = (facts, self._clock())

    def job(self, namespace: str, run_id: str) -> JobFacts | None:
        """Return a run's Job as it was last seen."""
        found = self._jobs.get((namespace, run_id))
        return found[0] if found else None

    def age(self, namespace: str, run_id: str) -> float:
        """Return how many seconds ago a run's Job was last seen; infinite when it never was."""
        found = self._jobs.get((namespace, run_id))
        return self._clock() - found[1] if found else float("inf")

    def forget(self, namespace: str, run_id: str) -> None:
        """Forget a run's Job."""
        self._jobs.pop((namespace, run_id), None)
