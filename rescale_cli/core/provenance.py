"""Where results come from: which head, which preparation of the images, which data, which tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Provenance:
    """What logits and sweeps carry with them, so that they are not taken for another model's."""

    head_sha256: str | None = None
    """SHA-256 of the bytes of the head, see `record.head_digest`; None: not known."""
    preprocessing: Mapping[str, Any] | None = None
    """How images were prepared, as a run's config.json says it, and its `source`; None: not known,
    or not done by this tool."""
    data: Mapping[str, Any] | None = None
    """`source`, `split` and `samples` of the data."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version, of those that had a part in it."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain values; `of` reads them again."""
        return {
            "head_sha256": self.head_sha256,
            "preprocessing": None if self.preprocessing is None else dict(self.preprocessing),
            "data": None if self.data is None else dict(self.data),
            "versions": dict(self.versions),
        }

    @classmethod
    def of(cls, said: object) -> Provenance:
        """What JSON from outside says; what is not of its type counts as not said.

        Example:
            >>> Provenance.of({"head_sha256": 5, "versions": {"torch": "2.9"}}).versions
            {'torch': '2.9'}
        """
        table = said if isinstance(said, dict) else {}
        sha, versions = table.get("head_sha256"), table.get("versions")
        preprocessing, data = table.get("preprocessing"), table.get("data")
        return cls(
            sha if isinstance(sha, str) else None,
            preprocessing if isinstance(preprocessing, dict) else None,
            data if isinstance(data, dict) else None,
            {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        )
