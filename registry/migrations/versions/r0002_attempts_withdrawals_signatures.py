"""Who is making what; which versions may not be used any more; which manifests were signed."""

import sqlalchemy as sa
from alembic import op

from registry.migrations.append_only import refuse_changes

revision = "0002"
down_revision = "0001"

DIGEST = sa.String(length=64)
MOMENT = sa.DateTime(timezone=True)
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("key", DIGEST, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_runs")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run", DIGEST, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.CheckConstraint("state IN ('running', 'done', 'failed', 'lost')", name=op.f("ck_attempts_state")),
        sa.CheckConstraint("(state = 'running') = (ended_at IS NULL)", name=op.f("ck_attempts_ended")),
        sa.ForeignKeyConstraint(["run"], ["runs.key"], name=op.f("fk_attempts_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("run", "number", name=op.f("uq_attempts_run_number")),
    )
    op.create_table(
        "withdrawals",
        sa.Column("version_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("cause_id", ROW_ID, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["cause_id"], ["versions.id"], name=op.f("fk_withdrawals_cause_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_withdrawals_version_id")),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_withdrawals")),
    )
    op.create_index(op.f("ix_withdrawals_cause_id"), "withdrawals", ["cause_id"], unique=False)
    op.create_table(
        "signatures",
        sa.Column("version_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("key", DIGEST, nullable=False),
        sa.Column("seal", DIGEST, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_signatures_version_id")),
        sa.PrimaryKeyConstraint("version_id", "key", name=op.f("pk_signatures")),
    )
    refuse_changes("withdrawals", "signatures")


def downgrade() -> None:
    op.drop_table("signatures")
    op.drop_index(op.f("ix_withdrawals_cause_id"), table_name="withdrawals")
    op.drop_table("withdrawals")
    op.drop_table("attempts")
    op.drop_table("runs")
