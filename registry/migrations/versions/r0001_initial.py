"""The ledger as it began: what was made, from what, how well it does, and what is served."""

import sqlalchemy as sa
from alembic import op

from registry.migrations.append_only import refuse_changes

revision = "0001"
down_revision = None

DIGEST = sa.String(length=64)
MOMENT = sa.DateTime(timezone=True)
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

APPEND_ONLY = ("versions", "edges", "specs", "splits", "promotions")


def upgrade() -> None:
    op.create_table(
        "bases",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_bases")),
    )
    op.create_table(
        "codes",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("packages", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_codes")),
    )
    op.create_table(
        "datasets",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_digest", sa.Text(), nullable=False),
        sa.Column("rows_in", sa.BigInteger(), nullable=False),
        sa.Column("accepted", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("deduplicated", sa.BigInteger(), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("purpose IN ('training', 'traffic')", name=op.f("ck_datasets_purpose")),
        sa.CheckConstraint(
            "rows_in = accepted + quarantined + deduplicated", name=op.f("ck_datasets_rows_are_conserved")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_datasets")),
    )
    op.create_index(op.f("ix_datasets_task"), "datasets", ["task"], unique=False)
    op.create_table(
        "splits",
        sa.Column("dataset", DIGEST, nullable=False),
        sa.Column("side", sa.String(length=32), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_splits_rows")),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.digest"], name=op.f("fk_splits_dataset")),
        sa.PrimaryKeyConstraint("dataset", "side", name=op.f("pk_splits")),
    )
    op.create_table(
        "specs",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_specs")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires_seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "names",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_names")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("topic", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("delivered_at", MOMENT, nullable=True),
        sa.CheckConstraint(
            "topic IN ('version', 'promotion', 'evaluation', 'withdrawal')", name=op.f("ck_outbox_topic")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(op.f("ix_outbox_delivered_at"), "outbox", ["delivered_at"], unique=False)
    op.create_table(
        "row_sets",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("keys", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_row_sets")),
    )
    op.create_table(
        "versions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("version_key", DIGEST, nullable=False),
        sa.Column("artifact", DIGEST, nullable=False),
        sa.Column("base", DIGEST, nullable=False),
        sa.Column("code", DIGEST, nullable=False),
        sa.Column("spec", DIGEST, nullable=False),
        sa.Column("manifest", DIGEST, nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("figures", DIGEST, nullable=True),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("flow_run", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("kind IN ('adapter', 'merged')", name=op.f("ck_versions_kind")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_versions_numbers_start_at_one")),
        sa.ForeignKeyConstraint(["base"], ["bases.digest"], name=op.f("fk_versions_base")),
        sa.ForeignKeyConstraint(["code"], ["codes.digest"], name=op.f("fk_versions_code")),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name=op.f("fk_versions_name")),
        sa.ForeignKeyConstraint(["spec"], ["specs.digest"], name=op.f("fk_versions_spec")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("name", "number", name=op.f("uq_versions_name_number")),
        sa.UniqueConstraint("version_key", name=op.f("uq_versions_version_key")),
    )
    op.create_index(op.f("ix_versions_artifact"), "versions", ["artifact"], unique=False)
    op.create_table(
        "edges",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("child_id", ROW_ID, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("parent_id", ROW_ID, nullable=True),
        sa.Column("base", DIGEST, nullable=True),
        sa.Column("dataset", DIGEST, nullable=True),
        sa.Column("code", DIGEST, nullable=True),
        sa.CheckConstraint(
            "(CASE WHEN parent_id IS NULL THEN 0 ELSE 1 END) + (CASE WHEN base IS NULL THEN 0 ELSE 1 END)"
            " + (CASE WHEN dataset IS NULL THEN 0 ELSE 1 END) + (CASE WHEN code IS NULL THEN 0 ELSE 1 END) = 1",
            name=op.f("ck_edges_one_target"),
        ),
        sa.CheckConstraint("parent_id IS NULL OR parent_id < child_id", name=op.f("ck_edges_parents_come_first")),
        sa.ForeignKeyConstraint(["base"], ["bases.digest"], name=op.f("fk_edges_base")),
        sa.ForeignKeyConstraint(["child_id"], ["versions.id"], name=op.f("fk_edges_child_id")),
        sa.ForeignKeyConstraint(["code"], ["codes.digest"], name=op.f("fk_edges_code")),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.digest"], name=op.f("fk_edges_dataset")),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name=op.f("fk_edges_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_edges")),
        sa.UniqueConstraint("child_id", "place", name=op.f("uq_edges_child_id_place")),
    )
    op.create_index(op.f("ix_edges_base"), "edges", ["base"], unique=False)
    op.create_index(op.f("ix_edges_code"), "edges", ["code"], unique=False)
    op.create_index(op.f("ix_edges_dataset"), "edges", ["dataset"], unique=False)
    op.create_index(op.f("ix_edges_parent_id"), "edges", ["parent_id"], unique=False)
    op.create_table(
        "evaluations",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("version_id", ROW_ID, nullable=True),
        sa.Column("base", DIGEST, nullable=True),
        sa.Column("dataset", DIGEST, nullable=False),
        sa.Column("side", sa.String(length=32), nullable=False),
        sa.Column("metric", DIGEST, nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("row_set", DIGEST, nullable=False),
        sa.Column("outcomes", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("(version_id IS NULL) <> (base IS NULL)", name=op.f("ck_evaluations_one_subject")),
        sa.CheckConstraint("n >= 1 AND low <= high", name=op.f("ck_evaluations_interval")),
        sa.ForeignKeyConstraint(["base"], ["bases.digest"], name=op.f("fk_evaluations_base")),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.digest"], name=op.f("fk_evaluations_dataset")),
        sa.ForeignKeyConstraint(["row_set"], ["row_sets.digest"], name=op.f("fk_evaluations_row_set")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_evaluations_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint(
            "base", "dataset", "side", "metric", "row_set", name=op.f("uq_evaluations_base_dataset_side_metric_row_set")
        ),
        sa.UniqueConstraint(
            "version_id",
            "dataset",
            "side",
            "metric",
            "row_set",
            name=op.f("uq_evaluations_version_id_dataset_side_metric_row_set"),
        ),
    )
    op.create_index(op.f("ix_evaluations_dataset"), "evaluations", ["dataset"], unique=False)
    op.create_table(
        "windows",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_windows_rows")),
        sa.PrimaryKeyConstraint("task", "digest", name=op.f("pk_windows")),
    )
    op.create_table(
        "findings",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version_id", ROW_ID, nullable=False),
        sa.Column("window_digest", DIGEST, nullable=False),
        sa.Column("verdict", DIGEST, nullable=False),
        sa.Column("action", DIGEST, nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["task", "window_digest"], ["windows.task", "windows.digest"], name=op.f("fk_findings_task_window_digest")
        ),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_findings_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_findings")),
        sa.UniqueConstraint("version_id", "window_digest", name=op.f("uq_findings_version_id_window_digest")),
    )
    op.create_index(op.f("ix_findings_task"), "findings", ["task"], unique=False)
    op.create_table(
        "promotions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("prior_seq", sa.Integer(), nullable=True),
        sa.Column("move", sa.String(length=16), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("decision", sa.JSON(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("move IN ('promote', 'rollback')", name=op.f("ck_promotions_move")),
        sa.CheckConstraint(
            "(seq = 1 AND prior_seq IS NULL AND previous IS NULL)"
            " OR (seq > 1 AND prior_seq = seq - 1 AND prior_seq IS NOT NULL AND previous IS NOT NULL)",
            name=op.f("ck_promotions_no_gap"),
        ),
        sa.CheckConstraint("previous IS NULL OR previous <> number", name=op.f("ck_promotions_something_moves")),
        sa.ForeignKeyConstraint(
            ["name", "number"], ["versions.name", "versions.number"], name=op.f("fk_promotions_name_number")
        ),
        sa.ForeignKeyConstraint(
            ["name", "prior_seq", "previous"],
            ["promotions.name", "promotions.seq", "promotions.number"],
            name=op.f("fk_promotions_name_prior_seq_previous"),
        ),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name=op.f("fk_promotions_name")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
        sa.UniqueConstraint("name", "seq", "number", name=op.f("uq_promotions_name_seq_number")),
        sa.UniqueConstraint("name", "seq", name=op.f("uq_promotions_name_seq")),
    )
    op.create_table(
        "retrain_claims",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("window_digest", DIGEST, nullable=False),
        sa.Column("finding_id", ROW_ID, nullable=False),
        sa.Column("claimant", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["task", "window_digest"],
            ["windows.task", "windows.digest"],
            name=op.f("fk_retrain_claims_task_window_digest"),
        ),
        sa.ForeignKeyConstraint(["finding_id"], ["findings.id"], name=op.f("fk_retrain_claims_finding_id")),
        sa.PrimaryKeyConstraint("task", "window_digest", name=op.f("pk_retrain_claims")),
    )
    refuse_changes(*APPEND_ONLY)


def downgrade() -> None:
    op.drop_table("retrain_claims")
    op.drop_table("promotions")
    op.drop_index(op.f("ix_findings_task"), table_name="findings")
    op.drop_table("findings")
    op.drop_table("windows")
    op.drop_index(op.f("ix_evaluations_dataset"), table_name="evaluations")
    op.drop_table("evaluations")
    op.drop_index(op.f("ix_edges_parent_id"), table_name="edges")
    op.drop_index(op.f("ix_edges_dataset"), table_name="edges")
    op.drop_index(op.f("ix_edges_code"), table_name="edges")
    op.drop_index(op.f("ix_edges_base"), table_name="edges")
    op.drop_table("edges")
    op.drop_index(op.f("ix_versions_artifact"), table_name="versions")
    op.drop_table("versions")
    op.drop_table("specs")
    op.drop_table("row_sets")
    op.drop_index(op.f("ix_outbox_delivered_at"), table_name="outbox")
    op.drop_table("outbox")
    op.drop_table("names")
    op.drop_table("leases")
    op.drop_table("splits")
    op.drop_index(op.f("ix_datasets_task"), table_name="datasets")
    op.drop_table("datasets")
    op.drop_table("codes")
    op.drop_table("bases")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION nothing_changes()")
