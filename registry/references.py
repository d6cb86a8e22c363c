"""What the ledger needs of the store: every object that something refers to, and what that is."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.records import dataset_ref
from registry.tables import DatasetRow, SignatureRow, VersionRow


def referenced(session: Session) -> dict[str, str]:
    """digest -> what refers to it, as people call it."""
    owners = {digest: dataset_ref(digest) for digest in session.scalars(select(DatasetRow.digest))}
    columns = (VersionRow.name, VersionRow.number, VersionRow.artifact, VersionRow.manifest, VersionRow.figures)
    for name, number, artifact, manifest, figures in session.execute(select(*columns).order_by(VersionRow.id)):
        ref = f"{name}:{number}"
        owners[artifact] = ref
        owners[manifest] = f"{ref} manifest"
        if figures is not None:
            owners[figures] = f"{ref} figures"
    sealed = select(SignatureRow.seal, VersionRow.name, VersionRow.number)
    for seal, name, number in session.execute(sealed.join(VersionRow, SignatureRow.version_id == VersionRow.id)):
        owners[seal] = f"{name}:{number} signature"
    return owners
