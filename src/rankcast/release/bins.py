"""Divide a long list of releases into bins, so that a device fetches the part with its adapter.

A bin is a delegated list of The Update Framework, chosen by the first bits of the SHA-256 of a
target's path (succinct hash bin delegations, TAP 15). Every adapter has exactly one bin, and
`targets.json` says in a line how many bins there are, and which keys sign them: those of the role
targets, so that nobody new is trusted. A store with few adapters keeps them in `targets.json`.

How many: `snapshot.json` names each bin by version, length and SHA-256, about 140 bytes that a
device fetches after every release; its own bin, about 230 bytes for each adapter in it, only when
one of these has a release. Few bins, which double when they grow full, keep both small.
"""

from __future__ import annotations

from typing import Literal

from tuf.api.metadata import Delegations, Root, SuccinctRoles, Targets

Divide = Literal["auto", "always", "never"]
"""Whether a store's list is divided: when it grows long, now, or not if it is whole."""
MOST_IN_ONE_LIST = 32
MOST_IN_A_BIN = 256
"""Adapters of a bin on average, beyond which there are twice as many bins."""
_PREFIX = "bin"
_BITS = range(5, 9)
"""Names of two digits: a role keeps its name when their number grows, and none disappears from the
snapshot, which devices would take for a rollback."""


def bits_of(targets: Targets) -> int:
    """Return by how many bits of a digest a list is divided; 0 for one that is whole.

    Raises:
        ValueError: it delegates in another way than this module does.
    """
    if targets.delegations is None:
        return 0
    roles = targets.delegations.succinct_roles
    if roles is None or roles.name_prefix != _PREFIX or roles.bit_length not in _BITS:
        raise ValueError("targets.json delegates in a way that rankcast publish does not")
    return roles.bit_length


def wanted_bits(n_adapters: int, now: int, divide: Divide) -> int:
    """Return by how many bits a list should be divided.

    Args:
        n_adapters: that it has.
        now: by how many it is; that never becomes less.
        divide: whether one that is whole may stay so, or has to.
    """
    may_be_whole = divide == "never" or (divide == "auto" and n_adapters <= MOST_IN_ONE_LIST)
    if not now and may_be_whole:
        return 0
    enough = (bits for bits in _BITS if n_adapters <= MOST_IN_A_BIN * 2**bits)
    return max(now, next(enough, _BITS[-1]))


def delegations(root: Root, bits: int) -> Delegations:
    """Return the delegation to bins that the keys of targets sign."""
    role = root.roles["targets"]
    bins = SuccinctRoles(list(role.keyids), role.threshold, bits, _PREFIX)
    return Delegations({keyid: root.keys[keyid] for keyid in role.keyids}, succinct_roles=bins)


def bin_names(targets: Targets) -> list[str]:
    """Return the names of all bins of a list, in order; none for one that is whole."""
    roles = None if targets.delegations is None else targets.delegations.succinct_roles
    return [] if roles is None else list(roles.get_roles())


def bin_of(targets: Targets, path: str) -> str | None:
    """Return the name of the bin of a target; None where the list is whole."""
    roles = None if targets.delegations is None else targets.delegations.succinct_roles
    return None if roles is None else roles.get_role_for_target(path)
