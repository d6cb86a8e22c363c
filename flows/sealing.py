"""What leaves the factory carries a signature where a key is configured."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.progress import voice
from flows.wiring import Home


def sealed(home: Home, target: Path) -> None:
    """Sign an exported folder or file. One that cannot be signed is not left behind; where only the public key is
    known, as on a machine that serves, nothing is signed."""
    signer = home.ledger.signer
    if signer is None or signer.private_key is None:
        return
    try:
        signature = signer.sign_export(target)
    except BaseException:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise
    voice.say(f"  signed with key {signer.key[:12]}: {signature}")
