"""Try to write to a repository of the Hub: a commit on a branch of its own, which goes again."""

from __future__ import annotations

import secrets
from contextlib import suppress

from raymerge.errors import StorageError
from raymerge.runtime.doctor.report import TRIAL_BYTES, Visit
from raymerge.storage import hub_account
from raymerge.storage.hub_account import Account, Trial
from raymerge.storage.hub_upload import HubDestination
from raymerge.storage.urls import Location


def try_repository(visit: Visit, where: Location) -> None:
    """Commit, read back and remove a megabyte, where the repository is there.

    Raises:
        StorageError: It cannot be written.
        SourceError: It cannot be read.
    """
    visit.facts["endpoint"] = hub_account.hub_address()
    place = str(where)
    HubDestination(place)  # a commit is no place to write to, which it says
    if hub_account.is_offline():
        visit.problem("HF_HUB_OFFLINE forbids to write to the Hub; unset it")
        return
    who = hub_account.account(place)
    if who is None:
        visit.problem("there is no token: `hf auth login` or HF_TOKEN gives one")
        return
    visit.facts["identity"] = f"{who.name}, token to {who.role}"
    if not _may_write(visit, who, where.root):
        return
    found = hub_account.repository(place)
    if found is None:
        visit.facts["repository"] = "not there"
        visit.note("a merge makes the repository, private; nothing was written to try it")
        return
    visit.facts["repository"] = (
        f"{'private' if found.private else 'public'}, {'' if found.gated else 'not '}gated"
    )
    _commit(visit, place)


def _may_write(visit: Visit, who: Account, repository: str) -> bool:
    namespace = repository.partition("/")[0]
    if who.role == "read":
        visit.problem(
            f"the token of {who.name} may read only; make one that may write, and log in with it "
            "(`hf auth login`)"
        )
    elif namespace not in who.namespaces and who.role == "write":
        known = ", ".join(sorted(who.namespaces))
        visit.problem(
            f"{namespace} is not among what {who.name} may write to ({known}); give another place, "
            "or ask to be let in"
        )
    return not visit.problems


def _commit(visit: Visit, place: str) -> None:
    branch = f"raymerge-doctor-{secrets.token_hex(8)}"
    data = secrets.token_hex(TRIAL_BYTES // 2).encode()
    commits: list[str] = []
    found: list[bytes] = []
    trial = Trial(place, branch)
    visit.litter = f"the branch {branch} of {place}"
    try:
        visit.measure_latency(trial.takes_large_files)
        visit.measure_writing(len(data), lambda: commits.append(trial.write(data)))
        visit.measure_reading(len(data), lambda: found.append(trial.read(commits[0])))
    except StorageError:
        with suppress(StorageError):
            trial.remove()
        raise
    trial.remove()
    visit.litter = None
    if found != [data]:
        visit.problem(f"{place} does not give back what was committed; do not use it")
