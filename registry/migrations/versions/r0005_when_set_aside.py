"""About when a row that was set aside came, and under which id; of those that are there already neither is known."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("traffic_set_aside", sa.Column("at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("traffic_set_aside", sa.Column("event", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("traffic_set_aside") as aside:
        aside.drop_column("event")
        aside.drop_column("at")
