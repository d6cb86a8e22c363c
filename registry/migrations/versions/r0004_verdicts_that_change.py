"""A window is judged again where more is known of it: findings are numbered within their window."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

DIGEST = sa.String(length=64)
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ONE = "uq_findings_version_id_window_digest"
NUMBERED = "uq_findings_version_id_window_digest_turn"


def upgrade() -> None:
    _take_claims_out()
    with op.batch_alter_table("findings") as findings:
        findings.add_column(sa.Column("turn", sa.Integer(), nullable=False, server_default="1"))
        findings.drop_constraint(op.f(ONE), type_="unique")
        findings.create_unique_constraint(op.f(NUMBERED), ["version_id", "window_digest", "turn"])
    with op.batch_alter_table("findings") as findings:
        findings.alter_column("turn", server_default=None)
    _put_claims_back()


def downgrade() -> None:
    """Of several findings on a window the first is kept, and whoever took up a later one has taken up that."""
    _take_claims_out()
    op.execute(
        "UPDATE kept_claims SET finding_id = (SELECT f.id FROM findings f JOIN findings g"
        " ON f.version_id = g.version_id AND f.window_digest = g.window_digest AND f.turn = 1"
        " WHERE g.id = kept_claims.finding_id)"
    )
    op.execute("DELETE FROM findings WHERE turn > 1")
    with op.batch_alter_table("findings") as findings:
        findings.drop_constraint(op.f(NUMBERED), type_="unique")
        findings.create_unique_constraint(op.f(ONE), ["version_id", "window_digest"])
        findings.drop_column("turn")
    _put_claims_back()


def _take_claims_out() -> None:
    """SQLite makes a table anew to change its constraints, and may not while another one points at it."""
    op.execute("CREATE TABLE kept_claims AS SELECT * FROM retrain_claims")
    op.drop_table("retrain_claims")


def _put_claims_back() -> None:
    op.create_table(
        "retrain_claims",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("window_digest", DIGEST, nullable=False),
        sa.Column("finding_id", ROW_ID, nullable=False),
        sa.Column("claimant", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["task", "window_digest"],
            ["windows.task", "windows.digest"],
            name=op.f("fk_retrain_claims_task_window_digest"),
        ),
        sa.ForeignKeyConstraint(["finding_id"], ["findings.id"], name=op.f("fk_retrain_claims_finding_id")),
        sa.PrimaryKeyConstraint("task", "window_digest", name=op.f("pk_retrain_claims")),
    )
    op.execute(
        "INSERT INTO retrain_claims SELECT task, window_digest, finding_id, claimant, created_at FROM kept_claims"
    )
    op.drop_table("kept_claims")
