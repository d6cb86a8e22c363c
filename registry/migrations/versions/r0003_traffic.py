"""What served tasks were asked, and which files of it were taken in."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

DIGEST = sa.String(length=64)
COUNTS = ("through", "rows_in", "accepted", "repeated", "late", "set_aside")


def upgrade() -> None:
    op.create_table(
        "traffic",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("task", "event", name=op.f("pk_traffic")),
    )
    op.create_index("ix_traffic_task_at", "traffic", ["task", "at"], unique=False)
    op.create_table(
        "traffic_ingests",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "rows_in = accepted + repeated + set_aside", name=op.f("ck_traffic_ingests_rows_are_conserved")
        ),
        sa.CheckConstraint("late <= repeated", name=op.f("ck_traffic_ingests_late")),
        sa.PrimaryKeyConstraint("task", "digest", name=op.f("pk_traffic_ingests")),
    )
    op.create_table(
        "traffic_set_aside",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task", "digest"], ["traffic_ingests.task", "traffic_ingests.digest"],
            name=op.f("fk_traffic_set_aside_task_digest"),
        ),
        sa.PrimaryKeyConstraint("task", "digest", "row", name=op.f("pk_traffic_set_aside")),
    )  # fmt: skip


def downgrade() -> None:
    op.drop_table("traffic_set_aside")
    op.drop_table("traffic_ingests")
    op.drop_index("ix_traffic_task_at", table_name="traffic")
    op.drop_table("traffic")
